"""A study read from disk: a grid of cells, each with a run for every seed."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax import rundir
from tljax.ablation.choice import PREFIX, Validation, validation_value
from tljax.ablation.declaration import Declaration, labelled_cells, read_declaration
from tljax.ablation.factorial import Cell, Seed
from tljax.ablation.factors import (
    Factor,
    cell_of,
    declared_factors,
    has_repeats,
    inferred_factors,
    level_of,
    seed_of,
    stray_fields,
)
from tljax.ablation.run_records import FAILED, RunRecord, find_runs, read_run
from tljax.paths import did_you_mean

# Of these, less is better; they may follow a "/".
LOWER_IS_BETTER = ("loss", "log_loss", "error", "ece", "brier", "seconds")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run with its place in the grid; `error` is set also where the metric is not a finite number."""

    record: RunRecord
    cell: Cell
    seed: Seed
    error: str | None

    @property
    def state(self) -> str:
        """Whether the run counts, failed, or has not ended."""
        return FAILED if self.error is not None else self.record.state


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Runs that answer a question.

    Args:
        title, question: for people.
        task: of all runs.
        metric: a name in `done.json`, of test images.
        factors: {name: levels in order}.
        baseline: the cell that others are compared with, if any.
        runs: in the order of the grid, then of the seeds.
        notes: what is odd about the runs, in sentences.
    """

    title: str
    question: str
    task: str
    metric: str
    factors: Mapping[str, Sequence[str]]
    baseline: Cell | None
    runs: Sequence[Run]
    notes: Sequence[str]

    @property
    def cells(self) -> list[Cell]:
        """The cells with a run of any state, in the order of the grid."""
        return list(dict.fromkeys(run.cell for run in self.runs))

    @property
    def seeds(self) -> list[Seed]:
        """All seeds of runs of any state."""
        return sorted({run.seed for run in self.runs})

    @property
    def finished(self) -> list[Run]:
        """The runs that count."""
        return [run for run in self.runs if run.error is None and run.record.done is not None]

    @property
    def is_lower_better(self) -> bool:
        """Which way the metric is good."""
        return self.metric.rpartition("/")[2] in LOWER_IS_BETTER

    def results(self, name: str) -> dict[Cell, dict[Seed, float]]:
        """Return a number of `done.json` by cell and seed, of the runs that have a finite one."""
        found: dict[Cell, dict[Seed, float]] = {}
        for run in self.finished:
            value = run.record.number(name)
            if value is not None:
                found.setdefault(run.cell, {})[run.seed] = value
        return found

    def validation(self) -> Validation:
        """Return what can be chosen by: validation results alone, of the runs that finished."""
        name, found = f"{PREFIX}{self.metric}", {}
        for run in self.finished:
            keeps_best = run.record.config.get("finetune", {}).get("keep") == "best"
            value = validation_value(run.record.validations, name, keeps_best=keeps_best)
            if value is not None and math.isfinite(value):
                found.setdefault(run.cell, {})[run.seed] = value
        return Validation(metric=name, values=found, minimise=self.is_lower_better)


def read_study(
    directories: Sequence[str | os.PathLike], *, metric: str | None = None, task: str | None = None
) -> Study:
    """Read a study, or any runs of one task: their factors are then the config fields that differ.

    Args:
        directories: a study with `study.json`, or folders with run directories somewhere below.
        metric: a name in `done.json`; None takes that of the study, or accuracy.
        task: of the runs; None takes that of the study, or the only one.

    Raises:
        ValueError: no runs, runs of several tasks, no such metric, or two runs in one place of the grid.
    """
    said = read_declaration(directories)
    if said.cells is None:
        paths = list({path.resolve(): path for folder in directories for path in find_runs(folder)}.values())
        records = _of_one_task([read_run(path) for path in paths], task or said.task, directories)
        places, levels, baseline = _places_by_config(said, records)
    else:
        places, levels, baseline = _places_by_cell(said, task)
        records = [record for record, _, _ in places]
    chosen = metric or said.metric
    _check_metric(records, chosen)
    runs = [Run(record=one, cell=cell, seed=seed, error=_error(one, chosen)) for one, cell, seed in places]
    runs.sort(
        key=lambda run: (*(names.index(one) for names, one in zip(levels.values(), run.cell, strict=True)), run.seed)
    )
    _check_places(runs)
    return Study(
        title=said.title,
        question=said.question,
        task=records[0].task,
        metric=chosen,
        factors=levels,
        baseline=baseline,
        runs=runs,
        notes=_notes(runs),
    )


Place = tuple[RunRecord, Cell, Seed]


def _places_by_config(
    said: Declaration, records: Sequence[RunRecord]
) -> tuple[list[Place], dict[str, list[str]], Cell | None]:
    """Find the place of each run in the grid by what its config says; with the levels and the baseline."""
    configs = [record.config for record in records]
    factors = inferred_factors(configs) if said.factors is None else declared_factors(said.factors, configs)
    with_repeat = has_repeats(configs, factors)
    places = [
        (record, cell_of(record.config, factors), seed_of(record.config, with_repeat=with_repeat)) for record in records
    ]
    levels = {factor.name: list(factor.levels.values()) for factor in factors}
    return places, levels, None if said.baseline is None else _baseline(said.baseline, factors)


def _places_by_cell(said: Declaration, task: str | None) -> tuple[list[Place], dict[str, list[str]], Cell | None]:
    """Take the place of each run from the declaration, where a run may have several, and may not have begun."""
    if task not in (None, said.task):
        raise ValueError(f"the study {said.folder} is of task {said.task!r}, got --task={task}")
    labelled, levels = labelled_cells([cell["values"] for cell in said.cells or ()])
    read: dict[str, RunRecord] = {}
    places = []
    for cell, one in zip(labelled, said.cells or (), strict=True):
        for seed, name in one["runs"].items():
            if name not in read:
                read[name] = read_run(said.folder / name, task=said.task)
            places.append((read[name], cell, (int(seed),)))
    if not places:
        raise ValueError(f"the study {said.folder} has no cells with runs")
    return places, levels, said.baseline_cell(levels)


def _of_one_task(
    records: Sequence[RunRecord], task: str | None, directories: Sequence[str | os.PathLike]
) -> list[RunRecord]:
    counts = Counter(record.task for record in records)
    where = " and ".join(map(str, directories))
    if not counts:
        raise ValueError(f"no run directory in {where}: none has a {rundir.CONFIG} that `tljax` wrote")
    if task is None and len(counts) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"{where} has runs of several tasks ({found}); choose one with --task")
    if task is not None and task not in counts:
        raise ValueError(f"no run of task {task!r} in {where}{did_you_mean(task, counts)}")
    return [record for record in records if task in (None, record.task)]


def _check_metric(records: Sequence[RunRecord], metric: str) -> None:
    known = dict.fromkeys(name for record in records for name in record.done or {})
    if known and metric not in known:
        raise ValueError(f"no run has a metric {metric!r}{did_you_mean(metric, known)}; they have {', '.join(known)}")


def _error(record: RunRecord, metric: str) -> str | None:
    """Say why a run does not count; None where it does, or has not ended."""
    if record.done is None:
        return record.error
    if metric not in record.done:
        return f"finished without {metric}"
    value = record.done[metric]
    # What has no value is null in JSON.
    return None if value is not None and math.isfinite(value) else f"finished with {metric} = {value}"


def _check_places(runs: Sequence[Run]) -> None:
    """Refuse two results for one cell and seed: a mean would count one of them twice."""
    places: dict[tuple[Cell, Seed], Run] = {}
    for run in runs:
        other = places.setdefault((run.cell, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{other.record.path} and {run.record.path} have the same factors and seed; name one of them, or "
                "make what differs a factor"
            )


def _baseline(said: Mapping[str, Any] | None, factors: Sequence[Factor]) -> Cell | None:
    """Return the cell of the baseline.

    Raises:
        ValueError: it lacks a factor, or names a value that no run has.
    """
    if said is None:
        return None
    missing = [factor.name for factor in factors if factor.name not in said]
    strangers = [name for name in said if name not in {factor.name for factor in factors}]
    if missing or strangers:
        raise ValueError(f"the baseline of the study lacks {missing} and has {strangers} more than its factors")
    return tuple(level_of(factor, said[factor.name]) for factor in factors)


def _notes(runs: Sequence[Run]) -> list[str]:
    strays = stray_fields([run.cell for run in runs], [run.record.config for run in runs])
    if not strays:
        return []
    return [f"Runs of one cell differ in more than their seed: {', '.join(strays)}. Their spread holds that too."]
