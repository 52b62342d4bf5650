import csv
import io
import math
import re

import pytest

from tljax.ablation.headline import MINUS
from tljax.ablation.stats import Estimate
from tljax.ablation.tables import ABSENT, FITTED, Column, Table, fitted, to_csv, to_latex, to_markdown, to_terminal

NASTY = r"a|b & 50% of_$x$ #1 {y} ~z^2 <i> \n *c* `d` [e]"
TABLE = Table(
    name="nasty",
    title="100% of_it & more",
    columns=[Column(name="cell & co"), Column(name="gain", form=".3f", is_signed=True), Column(name="n", form="d")],
    rows=[
        [NASTY, Estimate(mean=-0.01234, low=-0.02, high=0.001, n=5), 5],
        ["=SUM(A1)", Estimate(mean=0.5, low=math.nan, high=math.nan, n=1), 1],
        ["none", None, 0],
        ["zero", Estimate(mean=-0.0001, low=-0.0004, high=0.0002, n=2), 2],
        ["far", math.inf, 0],
    ],
    note="Half of 5_000.",
)


def test_markdown_escapes_and_keeps_its_columns():
    text = to_markdown(TABLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 7
    assert {len(re.sub(r"\\.", "", row).split("|")) for row in rows} == {5}
    assert r"a\|b &amp; 50% of\_$x$ #1 {y} ~z^2 &lt;i&gt; \\n \*c\* \`d\` \[e\] |" in text
    assert f"| {MINUS}0.012 \\[{MINUS}0.020, +0.001\\] | 5 |" in text
    assert "(n = 1, no interval)" in text
    # What is 0 as written has no sign.
    assert r"| zero | 0.000 \[0.000, 0.000\] | 2 |" in text
    assert f"| none | {ABSENT} | 0 |" in text
    assert "| far | ∞ | 0 |" in text


def test_latex_escapes_what_has_a_meaning():
    text = to_latex(TABLE)
    assert (
        r"a\textbar{}b \& 50\% of\_\$x\$ \#1 \{y\} \textasciitilde{}z\textasciicircum{}2 \textless{}i\textgreater{} "
        in text
    )
    assert r"\textbackslash{}n *c* `d` [e] &" in text
    assert "$-$0.012 [$-$0.020, +0.001]" in text
    assert r"\caption{100\% of\_it \& more. Half of 5\_000.}" in text
    for name in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{name}") == 1
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0]
    # Two separators in each row of three columns.
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()] == [2] * 5
    # A row that begins with a bracket would be read as the length after \\.
    assert not any(line.startswith("[") for line in body.splitlines())
    assert all(ord(letter) < 128 for letter in text)


def test_csv_holds_all_digits_and_no_formula():
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == ["cell & co", "gain", "gain low", "gain high", "gain n", "n"]
    assert rows[1] == [NASTY, "-0.01234", "-0.02", "0.001", "5", "5"]
    assert rows[2] == ["'=SUM(A1)", "0.5", "", "", "1", "1"]
    assert rows[3] == ["none", "", "", "", "", "0"]


def test_terminal_columns_line_up_and_say_what_is_left_out():
    lines = to_terminal(TABLE, 2).splitlines()
    assert len(lines) == 4
    assert lines[-1] == "... and 3 more rows"
    assert {line.index("5") for line in lines[1:2]}
    assert len(lines[1]) == len(lines[2])


def test_digits_follow_the_narrowest_interval():
    narrow = Estimate(mean=0.000123456, low=0.0001, high=0.00014, n=3)
    wide = Estimate(mean=0.5, low=0.1, high=0.9, n=3)
    for found, form in (
        ([wide], ".3f"),
        ([wide, narrow], ".6f"),
        ([], ".3f"),
        ([Estimate(mean=1.0, low=1.0, high=1.0, n=2)], ".3f"),
    ):
        table = Table(name="x", title="x", columns=[Column(name="a", form=FITTED)], rows=[[one] for one in found])
        assert fitted(table).columns[0].form == form


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"'x' has 1 columns and rows of \[2\]"):
        Table(name="x", title="x", columns=[Column(name="a")], rows=[["a", "b"]])
