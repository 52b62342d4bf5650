"""The report of a study: one page of HTML that needs nothing else, and its tables for papers and programs."""

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from tljax import rundir
from tljax.ablation import tables as writing
from tljax.ablation.report import FOLDER
from tljax.ablation.report import cell as markdown_cell
from tljax.ablation.stats import Estimate
from tljax.ablation.study import Study
from tljax.ablation.study_analysis import Analysis, analyse
from tljax.ablation.study_figures import draw_all
from tljax.ablation.study_tables import tables
from tljax.ablation.study_text import design, methods_used, verdict
from tljax.paths import did_you_mean

CHOICE = "choice.json"
FORMATS = ("html", "md", "latex", "csv")
# Longer tables are closed until they are asked for.
_OPEN_ROWS = 30
_TERMINAL_ROWS = 20
_MARKDOWN_ROWS = 200


def write_study_report(
    study: Study, directory: str | os.PathLike, formats: Collection[str] = FORMATS
) -> tuple[list[Path], str]:
    """Write the report of a study.

    Args:
        study: as `read_study` gives it.
        directory: of the files; made where it is not there.
        formats: of `FORMATS`: report.html, report.md, report.tex, and a CSV file for each table.

    Returns:
        The files, and a summary for a terminal.

    Raises:
        ValueError: a format is not known.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {unknown[0]!r}{did_you_mean(unknown[0], FORMATS)}; there are {', '.join(FORMATS)}")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    analysis = remember_choice(analyse(study), folder)
    made = tables(analysis, folder)
    texts: dict[str, str] = {}
    if "html" in formats:
        texts["report.html"] = to_html(analysis, made)
    if "md" in formats:
        texts["report.md"] = to_markdown(analysis, made)
    if "latex" in formats:
        texts["report.tex"] = to_latex(analysis, made)
    if "csv" in formats:
        texts |= {f"{name}.csv": writing.to_csv(table) for name, table in made.items()}
    paths = [folder / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        rundir.write_bytes(path, text.encode())
    return paths, to_terminal(analysis, made)


def remember_choice(analysis: Analysis, folder: Path) -> Analysis:
    """Note what validation chose, and add a note to the study where an earlier report chose another cell.

    A report shows the test results of all cells. A choice that changes after that, with more seeds or other metrics, is
    no longer one made before the test.
    """
    study, path = analysis.study, folder / CHOICE
    if analysis.choice is None:
        return analysis
    chosen, place = list(analysis.choice.cell), f"{study.metric} of {', '.join(study.factors)}"
    earlier = rundir.read_json(path) if path.exists() else {}
    cells = earlier.get(place, [])
    others = [cell for cell in cells if cell != chosen]
    if chosen not in cells:
        rundir.write_json(path, {**earlier, place: [*cells, chosen]})
    if not others:
        return analysis
    names = " and ".join(", ".join(cell) for cell in others)
    note = (
        f"An earlier report chose {names}, when the test results of all cells had been seen: this choice is not blind."
    )
    return dataclasses.replace(analysis, study=dataclasses.replace(study, notes=[*study.notes, note]))


def to_html(analysis: Analysis, made: Mapping[str, writing.Table]) -> str:
    """Write the page."""
    study = analysis.study
    headline, *evidence = verdict(analysis)
    context = {
        "study": study,
        "design": design(study),
        "verdict": headline,
        "evidence": evidence,
        "methods": methods_used([one.test for one in analysis.cells]),
        "charts": draw_all(analysis),
        "tables": made,
        "open_rows": _OPEN_ROWS,
        "environments": environments(study),
        "style": (FOLDER / "report.css").read_text(),
    }
    return _template().render(context)


def _template() -> jinja2.Template:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"value": writing.write_value, "mean": writing.mean_of, "range": writing.interval_of, "url": quote}
    found.tests |= {"estimate": lambda value: isinstance(value, Estimate)}
    return found.get_template("study.html.jinja")


def to_markdown(analysis: Analysis, made: Mapping[str, writing.Table]) -> str:
    """Write the sentences and the tables; long ones are in the CSV files only."""
    study = analysis.study
    headline, *evidence = verdict(analysis)
    parts = [f"# {markdown_cell(study.title)}\n"]
    parts += [f"{markdown_cell(text)}\n" for text in (study.question, design(study)) if text]
    parts += [f"{markdown_cell(headline)}\n", *(f"- {markdown_cell(text)}\n" for text in [*evidence, *study.notes])]
    for table in made.values():
        if len(table.rows) <= _MARKDOWN_ROWS:
            parts.append(writing.to_markdown(table))
        else:
            parts.append(f"## {markdown_cell(table.title)}\n\n{len(table.rows):,} rows: {table.name}.csv\n")
    return "\n".join(parts)


def to_latex(analysis: Analysis, made: Mapping[str, writing.Table]) -> str:
    """Write the tables that a paper may want, for `\\input`."""
    wanted = [table for name, table in made.items() if name not in ("runs", "failures")]
    head = f"% {' '.join(analysis.study.title.split())}: tables of `tljax report`; they need \\usepackage{{booktabs}}\n"
    return "\n".join([head, *(writing.to_latex(table) for table in wanted if len(table.rows) <= _MARKDOWN_ROWS)])


def to_terminal(analysis: Analysis, made: Mapping[str, writing.Table]) -> str:
    """Write the sentences and the first rows of the cells, and say what failed."""
    study = analysis.study
    table = made["cells"]
    wanted = [at for at, column in enumerate(table.columns) if column.name not in ("#", "sd")]
    brief = writing.Table(
        name=table.name,
        title=table.title,
        columns=[table.columns[at] for at in wanted],
        rows=[[row[at] for at in wanted] for row in table.rows],
    )
    failed = made.get("failures")
    lines = [study.title, design(study), "", writing.to_terminal(brief, _TERMINAL_ROWS), "", *verdict(analysis)]
    if failed is not None:
        names = list(dict.fromkeys(str(row[0]) for row in failed.rows))
        lines.append(f"failed: {', '.join(names[:5])}{' ...' * (len(names) > 5)}")
    return "\n".join([*lines, *study.notes])


def environments(study: Study) -> list[tuple[int, str]]:
    """Count the runs of each environment, most frequent first."""
    # A run may have several places in the grid.
    records = {run.record.path: run.record for run in study.runs}.values()
    found = Counter(_describe(record.environment) for record in records if record.environment)
    return [(number, text) for text, number in found.most_common()]


def _describe(environment: Mapping[str, Any]) -> str:
    devices = Counter(environment["devices"])
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("tljax", "jax", "jaxlib") if name in packages)
    named = ", ".join(f"{number} {name}" for name, number in devices.items())
    return (
        f"Python {environment['python']} on {environment['platform']}; {versions}; {named}; source {environment['git']}"
    )
