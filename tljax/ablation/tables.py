"""Tables of numbers with their intervals, written as Markdown, LaTeX, CSV or for a terminal."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.ablation.headline import MINUS
from tljax.ablation.report import cell as markdown_cell
from tljax.ablation.stats import Estimate

ABSENT = "\N{EN DASH}"
FITTED = "fitted"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "δ": r"$\delta$", "∞": r"$\infty$", MINUS: "$-$", ABSENT: "--",
}  # fmt: skip

Value = str | int | float | Estimate | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        name: its heading.
        form: of numbers, as for `format`; "" for text; `FITTED` leaves it to `fitted`.
        is_signed: numbers are differences, and are written with their sign.
    """

    name: str
    form: str = ""
    is_signed: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the column stands on the left."""
        return not self.form


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values; an estimate takes its interval along wherever it is written.

    Args:
        name: of its file, in lower case.
        title: what it shows.
        columns: of all rows.
        rows: a value for each column.
        note: how to read it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse rows that lack a value."""
        wrong = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.name!r} has {len(self.columns)} columns and rows of {sorted(set(wrong))}")


def decimals_for(found: Iterable[Estimate | None]) -> str:
    """Return the form of numbers that shows two digits of the narrowest interval, and three decimals or more."""
    widths = [one.high - one.low for one in found if one is not None and one.has_interval]
    narrowest = min([width for width in widths if width > 0], default=1.0)
    return f".{min(max(3, 1 - math.floor(math.log10(narrowest))), 6)}f"


def fitted(table: Table) -> Table:
    """Choose the decimals of the columns that are `FITTED` by the intervals in them."""
    columns = [
        dataclasses.replace(column, form=_decimals(row[at] for row in table.rows)) if column.form == FITTED else column
        for at, column in enumerate(table.columns)
    ]
    return dataclasses.replace(table, columns=columns)


def _decimals(values: Iterable[Value]) -> str:
    """Return the form of numbers with two digits of the narrowest interval, and three to six decimals."""
    widths = [one.high - one.low for one in values if isinstance(one, Estimate) and one.has_interval]
    narrowest = min([width for width in widths if width > 0], default=1.0)
    return f".{min(max(3, 1 - math.floor(math.log10(narrowest))), 6)}f"


def write_value(value: Value, column: Column) -> str:
    """Write a value with its interval for people."""
    if value is None:
        return ABSENT
    if isinstance(value, Estimate):
        return f"{_number(value.mean, column)} {interval_of(value, column)}"
    return value if isinstance(value, str) else _number(value, column)


def interval_of(found: Estimate, column: Column) -> str:
    """Write the interval of an estimate, or say that there is none."""
    if not found.has_interval:
        return "(n = 1, no interval)"
    return f"[{_number(found.low, column)}, {_number(found.high, column)}]"


def mean_of(found: Estimate, column: Column) -> str:
    """Write the mean of an estimate."""
    return _number(found.mean, column)


def _number(value: int | float, column: Column) -> str:
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    written = format(value, f"{'+' if column.is_signed else ''}{column.form}")
    # What is 0 as written has no sign.
    return (written if written.strip("+-0.") else written.lstrip("+-")).replace("-", MINUS)


def to_markdown(table: Table) -> str:
    """Write a table of GitHub's Markdown."""
    head = [markdown_cell(column.name) for column in table.columns]
    rule = ["---" if column.is_text else "---:" for column in table.columns]
    rows = [[markdown_cell(text) for text in row] for row in _written(table)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
    note = f"\n\n{markdown_cell(table.note)}" if table.note else ""
    return f"## {markdown_cell(table.title)}\n\n{lines}{note}\n"


def to_latex(table: Table) -> str:
    """Write a table for the package booktabs."""
    spec = "".join("l" if column.is_text else "r" for column in table.columns)
    head = " & ".join(latex(column.name) for column in table.columns)
    rows = "\n".join(f"{' & '.join(map(latex, row))} \\\\" for row in _written(table))
    note = f" {latex(table.note)}" if table.note else ""
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex(table.title)}.{note}}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{spec}}}\n\\toprule\n{head} \\\\\n\\midrule\n{rows}\n\\bottomrule\n"
        f"\\end{{tabular}}\n\\end{{table}}\n"
    )


def latex(text: str) -> str:
    """Escape what has a meaning in LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def to_csv(table: Table) -> str:
    """Write all digits, with the ends of intervals and n in columns of their own."""
    has_estimates = [any(isinstance(row[at], Estimate) for row in table.rows) for at in range(len(table.columns))]
    parts = ("", " low", " high", " n")
    head = [
        column.name + part
        for column, is_estimate in zip(table.columns, has_estimates, strict=True)
        for part in (parts if is_estimate else parts[:1])
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_plain, head))
    for row in table.rows:
        cells = (_spread(value, is_estimate) for value, is_estimate in zip(row, has_estimates, strict=True))
        writer.writerow([_plain(one) for cell in cells for one in cell])
    return file.getvalue()


def _spread(value: Value, is_estimate: bool) -> tuple[Any, ...]:
    if isinstance(value, Estimate):
        ends = (value.low, value.high) if value.has_interval else ("", "")
        return (value.mean, *ends, value.n)
    return (value, "", "", "") if is_estimate else (value,)


def _plain(value: Any) -> Any:
    """Keep a spreadsheet from running text as a formula."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def to_terminal(table: Table, most_rows: int) -> str:
    """Write the first rows in columns of equal width."""
    rows = [[column.name for column in table.columns], *_written(table)[:most_rows]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.columns))]
    lines = []
    for row in rows:
        padded = (
            text.ljust(width) if column.is_text else text.rjust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    rest = len(table.rows) - most_rows
    return "\n".join(lines + ([f"... and {rest} more rows"] if rest > 0 else []))


def _written(table: Table) -> list[list[str]]:
    return [
        [write_value(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows
    ]


WRITERS: Mapping[str, Any] = {"md": to_markdown, "latex": to_latex, "csv": to_csv}
