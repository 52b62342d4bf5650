"""The tables of a study."""

import os
from collections.abc import Sequence
from pathlib import Path

from tljax.ablation.choice import PREFIX
from tljax.ablation.comparison import Comparison
from tljax.ablation.run_records import FAILED
from tljax.ablation.study import Run
from tljax.ablation.study_analysis import Analysis, costs_of, shown_pair
from tljax.ablation.study_classes import Row, compare_by, group_scores, recalls
from tljax.ablation.study_text import label, methods_used
from tljax.ablation.tables import FITTED, Column, Table, Value, fitted

_TESTS = (
    Column(name="difference", form=FITTED, is_signed=True),
    Column(name="pairs", form="d"),
    Column(name="p, sign flips", form=".2g"),
    Column(name="p, Holm", form=".2g"),
    Column(name="p, Wilcoxon", form=".2g"),
    Column(name="d_z", form=".2f", is_signed=True),
    Column(name="Cliff's δ", form=".2f", is_signed=True),
    Column(name="probability of improvement", form=".2f"),
    Column(name="detectable", form=".2g"),
)

_NO_TESTS: list[Value] = [None] * len(_TESTS)


def _tests(found: Comparison) -> list[Value]:
    """Return the values of the columns `_TESTS`."""
    return [
        found.difference, found.difference.n, found.permutation.p, found.adjusted_p, found.wilcoxon, found.d_z,
        found.delta, found.improvement, found.detectable,
    ]  # fmt: skip


def tables(analysis: Analysis, folder: Path) -> dict[str, Table]:
    """Make all tables that have rows, by name.

    Args:
        analysis: of the study.
        folder: where the report stands, which paths of runs are relative to.
    """
    made = (
        cells_table(analysis),
        comparisons_table(analysis),
        effects_table(analysis),
        interactions_table(analysis),
        _pair_table(analysis, "classes", "class"),
        _pair_table(analysis, "groups", "group"),
        failures_table(analysis, folder),
        runs_table(analysis, folder),
    )
    return {table.name: fitted(table) for table in made if table.rows}


def cells_table(analysis: Analysis) -> Table:
    """Tabulate means over seeds, in the order of the grid: not by result, which nobody should choose by."""
    study = analysis.study
    known = costs_of(study)
    costs = [name for name in known if any(name in one.costs for one in analysis.cells)]
    has_validation = any(one.validation for one in analysis.cells)
    columns = [
        Column(name="#", form="d"),
        *(Column(name=name) for name in study.factors),
        *([Column(name=f"{PREFIX}{study.metric}", form=FITTED)] if has_validation else []),
        Column(name=f"{study.metric}, test", form=FITTED),
        Column(name="sd", form=".3f"),
        Column(name="n", form="d"),
        Column(name="failed", form="d"),
        *(Column(name=known[name][0], form=".3g") for name in costs),
    ]
    rows = []
    for at, one in enumerate(analysis.cells, 1):
        cost = [one.costs[name].mean / known[name][1] if name in one.costs else None for name in costs]
        validation = [one.validation] if has_validation else []
        spread = [one.test.sd if one.test else None, one.test.n if one.test else 0]
        rows.append([at, *one.cell, *validation, one.test, *spread, one.num_failed, *cost])
    used = methods_used([one.test for one in analysis.cells])
    note = f"Intervals: {used}. Costs are means over seeds."
    return Table(name="cells", title="All cells", columns=columns, rows=rows, note=note)


def comparisons_table(analysis: Analysis) -> Table:
    """Tabulate differences to the baseline, or of the chosen cell to the next."""
    pivot = "" if analysis.pivot is None else label(analysis.pivot, analysis)
    rows = [[label(cell, analysis), *_tests(found)] for cell, found in analysis.comparisons]
    title = f"Differences to {pivot}"
    note = f"By pairs of equal seed; Holm's family is this table, of {len(rows)}. Detectable: at power 0.8, level 0.05."
    return Table(name="comparisons", title=title, columns=[Column(name="cell"), *_TESTS], rows=rows, note=note)


def effects_table(analysis: Analysis) -> Table:
    """Tabulate the main effects."""
    metric = Column(name=analysis.study.metric, form=FITTED)
    columns = [Column(name="factor"), Column(name="level"), metric, *_TESTS, Column(name="blocks")]
    rows: list[list[Value]] = []
    for effect in analysis.effects:
        share = f"{effect.num_complete}/{effect.num_blocks}"
        for level, mean in effect.levels.items():
            found = effect.effects.get(level)
            name = f"{level} (ref.)" if level == effect.reference else level
            rows.append([effect.factor, name, mean, *(_NO_TESTS if found is None else _tests(found)), share])
    note = (
        "A level against the reference of its factor, that of the baseline or the first, with all else and the seed "
        "equal; averaged over the blocks that are complete, of those with any run, within each seed. Holm within each "
        "factor."
    )
    return Table(name="effects", title="Main effects", columns=columns, rows=rows, note=note)


def interactions_table(analysis: Analysis) -> Table:
    """Tabulate what pairs of levels do beyond the sum of their effects."""
    columns = [
        Column(name="factors"), Column(name="levels"), Column(name=analysis.study.metric, form=FITTED),
        Column(name="beyond the sum", form=FITTED, is_signed=True), Column(name="n", form="d"),
        Column(name="p, sign flips", form=".2g"), Column(name="p, Holm", form=".2g"), Column(name="blocks"),
    ]  # fmt: skip
    rows: list[list[Value]] = []
    for one in analysis.interactions:
        share = f"{one.num_complete}/{one.num_blocks}"
        for pair, found in one.contrasts.items():
            test = found.permutation
            numbers = [one.means[pair], found.difference, found.difference.n, test.p, found.adjusted_p]
            rows.append([" x ".join(one.factors), " x ".join(pair), *numbers, share])
    note = (
        "Mean of a pair less what the sum of the two main effects says; 0 where factors only add. Holm within a pair."
    )
    return Table(name="interactions", title="Two-way interactions", columns=columns, rows=rows, note=note)


def _pair_table(analysis: Analysis, name: str, thing: str) -> Table:
    """Tabulate the two cells that are looked at closely, by class or by group."""
    pair, study = shown_pair(analysis), analysis.study
    is_classes = name == "classes"
    many_labels = any("by_class" in run.record.evaluation for run in study.finished)
    what = ("average precision" if many_labels else "recall") if is_classes else study.metric
    rows: Sequence[Row] = []
    if pair is not None:
        rows = compare_by(study, pair, recalls if is_classes else group_scores(what), what)
    first, second = ("", "") if pair is None else (label(cell, analysis) for cell in pair)
    return Table(
        name=name,
        title=f"{what[0].upper()}{what[1:]} by {thing}: {first} against {second}",
        columns=[Column(name=thing), Column(name=first, form=FITTED), Column(name=second, form=FITTED), *_TESTS],
        rows=[[one, ours, theirs, *_tests(found)] for one, ours, theirs, found in rows],
        note=f"Test images. Holm's family is this table, of {len(rows)}.",
    )


def failures_table(analysis: Analysis, folder: Path) -> Table:
    """List the runs that failed; they are in no mean."""
    factors = [Column(name=name) for name in analysis.study.factors]
    columns = [
        Column(name="run"),
        Column(name="error"),
        *factors,
        Column(name="seed"),
        Column(name="attempts", form="d"),
    ]
    rows = [
        [link_to(run, folder), run.error, *run.cell, seed_name(run), run.record.attempts]
        for run in analysis.study.runs
        if run.state == FAILED
    ]
    return Table(name="failures", title="Failed runs", columns=columns, rows=rows, note="None of them is in a mean.")


def runs_table(analysis: Analysis, folder: Path) -> Table:
    """List all runs with their results."""
    study = analysis.study
    validations = analysis.study.validation().values
    columns = [
        Column(name="run"), *(Column(name=name) for name in study.factors), Column(name="seed"), Column(name="state"),
        Column(name=f"{PREFIX}{study.metric}", form=".4f"), Column(name=f"{study.metric}, test", form=".4f"),
        Column(name="time (s)", form=".3g"),
    ]  # fmt: skip
    rows: list[list[Value]] = []
    for run in study.runs:
        seen = validations.get(run.cell, {}).get(run.seed)
        numbers = [seen, run.record.number(study.metric), run.record.number("seconds")]
        rows.append([link_to(run, folder), *run.cell, seed_name(run), run.state, *numbers])
    return Table(name="runs", title="All runs", columns=columns, rows=rows)


def link_to(run: Run, folder: Path) -> str:
    """Return the path of a run from the folder of the report; empty where it has not begun."""
    return os.path.relpath(run.record.path.absolute(), folder.absolute()) if run.record.path.is_dir() else ""


def seed_name(run: Run) -> str:
    """Write a seed, with the repeat of the split where that varies."""
    return ".".join(map(str, run.seed))
