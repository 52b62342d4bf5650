"""All numbers of a study that its report shows."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tljax.ablation.choice import Choice, Validation, best
from tljax.ablation.comparison import Comparison, as_family, compare
from tljax.ablation.curves import Band, band
from tljax.ablation.factorial import Cell, Factors, Interaction, MainEffect, Seed, interaction, main_effect
from tljax.ablation.intervals import Summary, summarise
from tljax.ablation.run_records import FAILED, UNFINISHED, RunRecord
from tljax.ablation.stats import METRICS
from tljax.ablation.study import Run, Study

# Numbers in `done.json` that are costs, with their names and what they are divided by; those named after FLOPs are too.
COSTS = {
    "seconds": ("time (s)", 1.0),
    "num_trained": ("params trained (million)", 1e6),
    "train_tflops": ("training (TFLOPs)", 1.0),
}
# Between 0 and 1.
SHARES = {
    *METRICS, "mean_average_precision", "micro_f1", "subset_accuracy", "weighted_subset_accuracy", "cka", "recall",
    "average precision",
}  # fmt: skip
# Of lines in one picture of curves.
MOST_LINES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class CellSummary:
    """What the runs of a cell say: means over seeds, of what they have."""

    cell: Cell
    test: Summary | None
    validation: Summary | None
    costs: Mapping[str, Summary]
    num_failed: int
    num_unfinished: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A study with its numbers.

    Args:
        study: as read.
        factors: the levels that finished runs have.
        cells: in the order of the grid.
        choice: by validation; None where there is none.
        pivot: the cell that others are compared with: the baseline, or the second on validation.
        comparisons: (cell, its difference to the pivot), a family: of all other cells where there is a baseline, or of
            the chosen one alone.
        effects: of each factor that has a complete block.
        interactions: of each pair of factors that has one.
    """

    study: Study
    factors: Factors
    cells: Sequence[CellSummary]
    choice: Choice | None
    pivot: Cell | None
    comparisons: Sequence[tuple[Cell, Comparison]]
    effects: Sequence[MainEffect]
    interactions: Sequence[Interaction]


def analyse(study: Study) -> Analysis:
    """Compute all comparisons; test results have no part in the choice of a cell."""
    results, validation = study.results(study.metric), study.validation()
    choice = best(validation)
    factors = {
        name: [level for level in levels if any(cell[at] == level for cell in results)]
        for at, (name, levels) in enumerate(study.factors.items())
    }
    pivot, compared = _pairs(study, choice)
    family = as_family([compare(results.get(cell, {}), results.get(pivot, {})) for cell in compared] if pivot else [])
    varied = [name for name, levels in factors.items() if len(levels) > 1]
    effects = (main_effect(factors, results, name, _reference(study, factors, name)) for name in varied)
    pairs = (interaction(factors, results, *pair) for pair in itertools.combinations(varied, 2))
    return Analysis(
        study=study,
        factors=factors,
        cells=_summaries(study, validation),
        choice=choice,
        pivot=pivot,
        comparisons=[(cell, found) for cell, found in zip(compared, family, strict=True) if found],
        effects=[dataclasses.replace(one, levels=_within(one.levels, study.metric)) for one in effects if one],
        interactions=[dataclasses.replace(one, means=_within(one.means, study.metric)) for one in pairs if one],
    )


def _pairs(study: Study, choice: Choice | None) -> tuple[Cell | None, list[Cell]]:
    """Return the cell that others are compared with, and those others."""
    if study.baseline is not None:
        return study.baseline, [cell for cell in study.cells if cell != study.baseline]
    if choice is None or len(choice.ranking) < 2:
        return None, []
    return choice.ranking[1][0], [choice.cell]


def _reference(study: Study, factors: Factors, name: str) -> str:
    """Return the level that the others of a factor are compared with: that of the baseline, or the first."""
    if study.baseline is not None:
        level = study.baseline[list(study.factors).index(name)]
        if level in factors[name]:
            return level
    return factors[name][0]


def _summaries(study: Study, validation: Validation) -> list[CellSummary]:
    results = study.results(study.metric)
    known = {name: study.results(name) for name in costs_of(study)}
    states: dict[Cell, list[str]] = {}
    for run in study.runs:
        states.setdefault(run.cell, []).append(run.state)
    return [
        CellSummary(
            cell=cell,
            test=_over_seeds(results, cell, study.metric),
            validation=_over_seeds(validation.values, cell, study.metric),
            costs={name: found for name, values in known.items() if (found := _over_seeds(values, cell, name))},
            num_failed=states[cell].count(FAILED),
            num_unfinished=states[cell].count(UNFINISHED),
        )
        for cell in study.cells
    ]


def costs_of(study: Study) -> dict[str, tuple[str, float]]:
    """Return the costs that runs may have, as `COSTS` does."""
    names = dict.fromkeys(name for run in study.finished for name in run.record.done or {})
    return {**COSTS, **{name: (name.replace("_", " "), 1.0) for name in names if "flops" in name and name not in COSTS}}


def _over_seeds(results: Mapping[Cell, Mapping[Seed, float]], cell: Cell, name: str) -> Summary | None:
    found = summarise(list(results.get(cell, {}).values()))
    return found and within_range(found, name)


def within_range(found: Summary, name: str) -> Summary:
    """Cut an interval to where the values of a metric can be: that of a few seeds reaches beyond."""
    if name.rpartition("/")[2] not in SHARES or not found.has_interval:
        return found
    return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _within(found: Mapping[Any, Summary], name: str) -> dict[Any, Summary]:
    return {key: within_range(one, name) for key, one in found.items()}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that share a line in a picture; `factor` is "" where each line is a cell."""

    factor: str
    name: str
    runs: Sequence[Run]


def groups_of(analysis: Analysis) -> list[list[Group]]:
    """Divide the finished runs into the lines of pictures: cells where they are few, or the levels of each factor."""
    study = analysis.study
    cells = list(dict.fromkeys(run.cell for run in study.finished))
    if len(cells) <= MOST_LINES:
        names = cell_names(analysis)
        return [[_group("", names[cell], study, lambda run, cell=cell: run.cell == cell) for cell in cells]]
    pictures = []
    for at, (factor, levels) in enumerate(analysis.factors.items()):
        if len(levels) > 1:
            pictures.append(
                [
                    _group(factor, level, study, lambda run, at=at, level=level: run.cell[at] == level)
                    for level in levels
                ]
            )
    return pictures


def _group(factor: str, name: str, study: Study, holds: Callable[[Run], bool]) -> Group:
    return Group(factor=factor, name=name, runs=[run for run in study.finished if holds(run)])


def cell_names(analysis: Analysis) -> dict[Cell, str]:
    """Name cells by the levels of the factors that vary among them."""
    study = analysis.study
    cells = study.cells
    varied = [at for at in range(len(study.factors)) if len({cell[at] for cell in cells}) > 1]
    return {cell: ", ".join(cell[at] for at in varied) or "all runs" for cell in cells}


def over_group(group: Group, name: str) -> Summary | None:
    """Average a number of `done.json` over the runs of a group: within each seed first, then over seeds."""
    by_seed: dict[Seed, list[float]] = {}
    for run in group.runs:
        value = run.record.number(name)
        if value is not None:
            by_seed.setdefault(run.seed, []).append(value)
    found = summarise([fmean(values) for values in by_seed.values()])
    return found and within_range(found, name)


def band_of(group: Group, curve_of: Callable[[RunRecord], Mapping[int, float]]) -> Band | None:
    """Average the curves {step: value} of a group: within each seed first, then over seeds."""
    by_seed: dict[Seed, dict[int, list[float]]] = {}
    for run in group.runs:
        for step, value in curve_of(run.record).items():
            by_seed.setdefault(run.seed, {}).setdefault(step, []).append(value)
    return band([{step: fmean(values) for step, values in found.items()} for found in by_seed.values()])


def validation_curve(record: RunRecord, metric: str) -> dict[int, float]:
    """Return what validation said at each evaluated step."""
    return {row["step"]: row[metric] for row in record.validations if row.get(metric) is not None}


def shown_pair(analysis: Analysis) -> tuple[Cell, Cell] | None:
    """Return the two cells that are looked at closely: the chosen one, or the only other one, and the pivot."""
    if analysis.pivot is None or not analysis.comparisons:
        return None
    others = [cell for cell, _ in analysis.comparisons]
    chosen = analysis.choice.cell if analysis.choice else None
    if chosen in others:
        return chosen, analysis.pivot
    return (others[0], analysis.pivot) if len(others) == 1 else None
