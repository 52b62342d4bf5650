import csv
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats

from tests.study_runs import (
    CLASSES,
    FACTORS,
    NUM_TEST,
    accuracy_of,
    make_config,
    run_path,
    write_failure,
    write_study,
)
from tljax import cli

BASELINE = {"groups.freeze": "embed", "schedule.learning_rate": 1e-4}
FAILED = {"groups.freeze": "block_03", "schedule.learning_rate": 1e-3}
ERROR = "ValueError: <script>alert(1)</script> & a loss of 7%"
VOID = {"meta", "link", "br"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("studies") / "a study", baseline=BASELINE)
    path = run_path(folder, FAILED, 4)
    shutil.rmtree(path)
    write_failure(path, make_config(FAILED, 4), ERROR, attempts=3)
    assert cli.main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report" / "report.html").read_text()


def read_rows(folder, name):
    return list(csv.DictReader((folder / "report" / name).read_text().splitlines()))


class Page(HTMLParser):
    """Checks that every tag is closed in order; collects what is linked, named and set in bold."""

    def __init__(self, text):
        super().__init__()
        self.open, self.problems, self.links, self.names, self.bold = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.links += [known[name] for name in ("src", "href", "srcset", "action", "data") if name in known]
        self.names += [known["id"]] if "id" in known else []
        if tag not in VOID:
            self.open.append((tag, known.get("class", "")))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0] != tag:
            self.problems.append((tag, self.getpos()))

    def handle_data(self, data):
        if any(tag in ("strong", "b") or style == "strong" for tag, style in self.open):
            self.bold.append(data)


def test_the_page_is_balanced_and_needs_nothing_else(page, folder):
    found = Page(page)
    assert (found.problems, found.open) == ([], [])
    assert "<script" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    anchors = [link[1:] for link in found.links if link.startswith("#")]
    assert len(anchors) == 9
    assert sorted(anchors) == sorted(found.names)
    runs = [link for link in found.links if link.startswith("..")]
    # The failed run is linked twice.
    assert len(runs) == 45 + 1
    assert all((folder / "report" / unquote(link)).is_dir() for link in runs)
    assert {link for link in found.links if not link.startswith(("#", ".."))} == {"data:,"}


def test_charts_are_xml_with_finite_places_inside_the_picture(page):
    pictures = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    # Effects, an interaction, cells, costs, drift, curves, confusions.
    assert len(pictures) == 4 + 1 + 1 + 2 + 4 + 4 + 2
    for picture in pictures:
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        for shape in picture.iter():
            for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
                assert 0 <= float(shape.attrib.get(name, 0)) <= limit, shape.attrib
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(shape.attrib.get(name, 0)) <= height, shape.attrib
            for point in shape.attrib.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
        assert "nan" not in ElementTree.tostring(picture, encoding="unicode")


def test_no_number_is_bold_without_its_interval(page):
    """Bold are names, titles and the headline, in which every mean is followed by its interval."""
    bold = Page(page).bold
    assert len(bold) == 18  # the titles of the charts
    levels = {str(level) for level in FACTORS["schedule.learning_rate"]}
    assert {number for text in bold for number in re.findall(r"\d+\.\d+", text)} <= levels
    (headline,) = re.findall(r'<p class="verdict">(.*?)</p>', page)
    assert re.fullmatch(
        r"Validation chooses block_03, 0.0003: accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] \(n = 5\) on test images\.",
        headline,
    )


def cell_values(levels):
    return np.array([accuracy_of(levels, FACTORS, seed) for seed in range(5)])


def test_differences_are_those_of_scipy(folder):
    rows = read_rows(folder, "comparisons.csv")
    assert len(rows) == 8
    ours, base = cell_values({"groups.freeze": "block_01", "schedule.learning_rate": 3e-4}), cell_values(BASELINE)
    (row,) = [row for row in rows if row["cell"] == "block_01, 0.0003"]
    interval = scipy.stats.ttest_rel(ours, base).confidence_interval()
    assert float(row["difference"]) == pytest.approx((ours - base).mean())
    assert (float(row["difference low"]), float(row["difference high"])) == pytest.approx((interval.low, interval.high))
    exact = scipy.stats.permutation_test((ours - base,), np.mean, permutation_type="samples").pvalue
    assert float(row["p, sign flips"]) == pytest.approx(exact)
    assert float(row["p, Wilcoxon"]) == pytest.approx(scipy.stats.wilcoxon(ours, base)[1])
    assert float(row["probability of improvement"]) == pytest.approx(
        scipy.stats.mannwhitneyu(ours, base).statistic / 25
    )
    (short,) = [row for row in rows if row["cell"] == "block_03, 0.001"]
    assert short["pairs"] == "4"


def test_all_formats_hold_the_same_numbers(folder, page):
    rows = read_rows(folder, "cells.csv")
    assert len(rows) == 9
    markdown, latex = ((folder / "report" / name).read_text() for name in ("report.md", "report.tex"))
    for row in rows:
        low, high = max(float(row["accuracy, test low"]), 0), min(float(row["accuracy, test high"]), 1)
        mean, ends = f"{float(row['accuracy, test']):.3f}", f"{low:.3f}, {high:.3f}"
        assert f'>{mean}<span class="range">[{ends}]</span>' in page
        assert f"{mean} \\[{ends}\\]" in markdown
        assert f"{mean} [{ends}]" in latex
    assert [row["failed"] for row in rows] == ["0"] * 8 + ["1"]
    assert "Depth &amp; rate &lt;made up&gt;" in page
    assert "Does 100% of the net have to be trained?" in page


def test_failures_are_listed_with_their_error_as_text(folder, page):
    (row,) = read_rows(folder, "failures.csv")
    assert (row["error"], row["attempts"], row["seed"]) == (ERROR, "3", "4")
    assert "<pre>ValueError: &lt;script&gt;alert(1)&lt;/script&gt; &amp; a loss of 7%</pre>" in page
    assert "44 finished, 1 failed." in unescape(page)


def test_classes_and_groups_of_the_chosen_cell_against_the_baseline(folder):
    rows = read_rows(folder, "classes.csv")
    assert [row["class"] for row in rows] == list(CLASSES)
    chosen = cell_values({"groups.freeze": "block_03", "schedule.learning_rate": 3e-4})
    # Of each class as many are right as the accuracy says.
    wanted = (np.round(chosen * NUM_TEST / 3) / (NUM_TEST / 3)).mean()
    assert float(rows[0]["block_03, 0.0003"]) == pytest.approx(wanted)
    groups = read_rows(folder, "groups.csv")
    assert [row["group"] for row in groups] == ["mono", "poly"]
    assert float(groups[0]["block_03, 0.0003"]) == pytest.approx(chosen.mean() + 0.01)


def test_the_command_prints_a_summary(folder, capsys, tmp_path):
    arguments = ["report", str(folder), f"--to={tmp_path / 'out'}", "--metric=roc_auc", "--format=md,csv"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "9 cells (levels: 3 of groups.freeze, 3 of schedule.learning_rate) with 5 seeds: 45 runs" in out
    assert re.search(r"^block_01 +0.001 .*\[\d\.\d+, \d\.\d+\]", out, re.MULTILINE)
    assert f"report: {tmp_path / 'out' / 'report.md'}" in out
    assert not (tmp_path / "out" / "report.html").exists()
    # Nothing was validated by this metric, so nothing is chosen by it.
    assert "Validation chooses" not in out


def test_mistakes_are_named(folder, capsys, tmp_path):
    for arguments, message in (
        ([], "no DIR given"),
        ([str(folder), str(folder)], "say where the report goes with --to=DIR"),
        ([str(tmp_path / "nowhere")], "no folder"),
        ([str(tmp_path)], "no run directory in"),
        ([str(folder), "--format=pdf", f"--to={tmp_path}"], "no format 'pdf'"),
        ([str(folder), "--metric=acuracy"], "did you mean 'accuracy'"),
    ):
        assert cli.main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_one_run_and_runs_that_all_failed_have_a_report(tmp_path, capsys):
    single = write_study(tmp_path / "single", {"groups.freeze": ["embed"]}, seeds=[3])
    assert cli.main(["report", str(single)]) == 0
    assert "n = 1, no interval" in capsys.readouterr().out
    failed = tmp_path / "failed"
    for seed in range(2):
        write_failure(failed / f"run_{seed}", make_config(FAILED, seed), "no such file")
    assert cli.main(["report", str(failed)]) == 0
    assert "No run has finished." in capsys.readouterr().out
    assert Page((failed / "report" / "report.html").read_text()).problems == []


def test_another_choice_after_the_test_results_were_seen_is_said(tmp_path, capsys):
    folder = write_study(tmp_path / "again", {"groups.freeze": ["embed", "block_01"]}, seeds=range(3))
    for _ in range(2):
        assert cli.main(["report", str(folder)]) == 0
        assert "had been seen" not in capsys.readouterr().out
    path = next((folder / "runs").glob("embed*"))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    (path / "metrics.jsonl").write_text("".join(json.dumps({**line, "val_accuracy": 9.0}) + "\n" for line in lines))
    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "An earlier report chose block_01, when the test results of all cells had been seen" in out
    assert out == _said(folder, capsys)


def _said(folder, capsys):
    """What another report of the same runs says."""
    assert cli.main(["report", str(folder)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_thousand_runs_have_a_page_of_less_than_ten_megabytes(tmp_path):
    factors = {
        "groups.freeze": [f"block_{depth:02d}" for depth in range(10)],
        "schedule.learning_rate": [1e-5 * 3**power for power in range(5)],
        "optimizer.weight_decay": [0, 0.01, 0.05, 0.1, 0.3],
    }
    folder = write_study(
        tmp_path / "large", factors, seeds=range(4), baseline={name: at[0] for name, at in factors.items()}
    )
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report" / "report.html").stat().st_size < 10e6
    assert "249 rows" in (folder / "report" / "report.html").read_text()
