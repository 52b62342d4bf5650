"""The runs of a study: which there are, how far each is, and how those that are left are run."""

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tljax import plain, rundir
from tljax.ablation.grid import SEED, Cell, Study, apply_fields, cells_of
from tljax.ablation.launch import Where
from tljax.ablation.runs import DONE, FAILED, RUNNING, Outcome, Run, describe_status, ended_of, log_tail
from tljax.ablation.slurm_follow import LOST
from tljax.tasks.launching import find_results, launch_tasks
from tljax.tasks.section_checks import check_config, fingerprint_of, known_fields
from tljax.tasks.sections import select

# In the directory of a study.
STUDY = "study.json"
RUNS = "runs"
HALF_FINISHED, TO_DO = "half-finished", "to do"
PROGRESS = (DONE, RUNNING, HALF_FINISHED, FAILED, TO_DO)
# The ends of what the system, or a user, has killed: no mistake of its config, and its run goes on.
_KILLED = (describe_status(-signal.SIGKILL), LOST)
_NAME_DIGITS = 16

log = logging.getLogger(__name__)

# Starts runs that are not finished, and says of each how far it is, as `launch_tasks` does.
Launcher = Callable[..., list[Outcome]]


@dataclass(frozen=True, kw_only=True)
class StudyRuns:
    """A study with its runs.

    Args:
        study: what was declared, any change of its base config made.
        cells: in order.
        places: of each cell, in the same order, {seed: name of its run}. Configs that compute the same are one run,
            which then has several places.
        runs: {name: run}, without doubles.
    """

    study: Study
    cells: Sequence[Cell]
    places: Sequence[Mapping[int, str]]
    runs: Mapping[str, Run]


def plan_runs(study: Study, workdir: str | os.PathLike, store: str | os.PathLike | None = None) -> StudyRuns:
    """Make the runs of a study, each checked as far as that goes without data; nothing is written.

    Args:
        study: what to run.
        workdir: of the study.
        store: folder of runs that several studies share; None is one of this study alone.

    Raises:
        ValueError: fields that there are not, or values out of range, with the cell that they are in.
    """
    base, cells = study.base(), cells_of(study)
    folder = Path(workdir, RUNS) if store is None else Path(store)
    places, runs, problems = [], {}, []
    for cell in cells:
        place = {}
        for seed in study.seeds:
            try:
                config = _config_of(study, base, cell, seed)
            except ValueError as error:
                # Other seeds have the same mistake.
                problems.append(f"{describe_cell(cell)}: {error}")
                break
            name = fingerprint_of(study.task, config)[:_NAME_DIGITS]
            place[seed] = name
            if name not in runs:
                runs[name] = _run_of(study.task, config, name, folder / name)
        places.append(place)
    if problems:
        raise ValueError(f"study {study.slug!r} cannot run:\n  " + "\n  ".join(problems))
    return StudyRuns(study=study, cells=cells, places=places, runs=runs)


def describe_cell(cell: Cell) -> str:
    """Return a cell in a line."""
    return ", ".join(f"{factor}={value}" for factor, value in cell.items())


def _config_of(study: Study, base: Mapping[str, Any], cell: Cell, seed: int) -> dict[str, Any]:
    config = apply_fields({**base, SEED: seed}, study.fields(cell), known_fields(study.task, base))
    check_config(study.task, config)
    return select(study.task, config)


def _run_of(task: str, config: Mapping[str, Any], name: str, workdir: Path) -> Run:
    """Return a run, with the config of its directory where that writes the same in another way."""
    path = workdir / rundir.CONFIG
    if path.exists() and not rundir.has_work(workdir):
        return Run(task=task, config=config, workdir=workdir)
    if path.exists():
        held = rundir.read_json(path)
        if held["task"] == task and fingerprint_of(task, held["config"]).startswith(name):
            execution = {key: value for key, value in config.items() if key == "execution"}
            return Run(task=task, config={**held["config"], **execution}, workdir=workdir)
    return Run(task=task, config=config, workdir=workdir)


def progress_of(run: Run) -> str:
    """Return how far a run is, one of `PROGRESS`."""
    workdir = Path(run.workdir)
    if find_results(run) is not None:
        return DONE
    if rundir.is_in_use(workdir):
        return RUNNING
    if (workdir / rundir.ERROR).exists() or _failed_unseen(run) is not None:
        return FAILED
    return HALF_FINISHED if workdir.is_dir() and rundir.has_work(workdir) else TO_DO


def write_study(planned: StudyRuns, workdir: str | os.PathLike) -> None:
    """Write what the study is, and give the runs of a shared store their names in it.

    Raises:
        ValueError: the directory has a run of its own where one of a store would be named.
    """
    workdir, study = Path(workdir), planned.study
    (workdir / RUNS).mkdir(parents=True, exist_ok=True)
    for name, run in planned.runs.items():
        place, target = workdir / RUNS / name, Path(run.workdir).absolute()
        if place.absolute() == target or place.resolve() == target.resolve():
            continue
        if place.exists() and not place.is_symlink():
            raise ValueError(f"{place} is a run of this study alone; move it to {target}, or leave --runs out")
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent.resolve()))
    fields = {factor: field for factor in study.factors if (field := _telling_field(study, factor)) is not None}
    baseline = None if study.baseline is None else study.fields(dict(study.baseline))
    said = {
        "slug": study.slug,
        "title": study.title,
        "question": study.question,
        "task": study.task,
        "factors": {field: _values(study, factor, field) for factor, field in fields.items()},
        "labels": {field: [str(value) for value in study.factors[factor]] for factor, field in fields.items()},
        "seeds": list(study.seeds),
        "metric": study.metric,
        "baseline": None if baseline is None else {field: baseline[field] for field in fields.values()},
        "baseline_cell": None if study.baseline is None else dict(study.baseline),
        "cells": [
            {"values": dict(cell), "runs": {str(seed): f"{RUNS}/{name}" for seed, name in place.items()}}
            for cell, place in zip(planned.cells, planned.places, strict=True)
        ],
    }
    rundir.write_json(workdir / STUDY, plain.as_read(said))


def _telling_field(study: Study, factor: str) -> str | None:
    """Return the first config field that has another value for each value of a factor; None where there is none."""
    values = study.factors[factor]
    if not isinstance(values, Mapping):
        return factor
    levels = list(values.values())
    for field in dict.fromkeys(name for level in levels for name in level):
        found = [repr(level[field]) for level in levels if field in level]
        if len(set(found)) == len(levels):
            return field
    return None


def _values(study: Study, factor: str, field: str) -> list[Any]:
    values = study.factors[factor]
    return [level[field] for level in values.values()] if isinstance(values, Mapping) else list(values)


def runs_left(planned: StudyRuns, *, retry_failed: bool) -> list[Run]:
    """Return the runs to start: all that are neither finished nor failed, or the failed ones alone."""
    progress = {name: progress_of(run) for name, run in planned.runs.items()}
    wanted = (FAILED,) if retry_failed else (RUNNING, HALF_FINISHED, TO_DO)
    return [run for name, run in planned.runs.items() if progress[name] in wanted]


def run_study(
    planned: StudyRuns, workdir: str | os.PathLike, where: Where, *, retry_failed: bool = False, wait: bool = True,
    launcher: Launcher = launch_tasks,
) -> list[Outcome]:  # fmt: skip
    """Run what is left of a study; a run that fails is recorded, and stops no other.

    Whatever ends this, the same call goes on: the run directories are the whole state.

    Args:
        planned: its runs.
        workdir: of the study.
        where: on this machine, or on a cluster.
        retry_failed: run those that have failed, and no others.
        wait: see `ablation.launch.launch`.
        launcher: called as `launcher(runs, where, wait=wait, ended=function of an outcome)`.

    Returns:
        The outcomes of the runs that were left.

    Raises:
        ValueError: another process runs this study, beside what the launcher raises.
    """
    with rundir.only_process(workdir):
        write_study(planned, workdir)
        for run in planned.runs.values():
            if progress_of(run) == FAILED and (unseen := _failed_unseen(run)) is not None:
                _record(unseen, retries=0)
        left = runs_left(planned, retry_failed=retry_failed)
        log.info("%s: %d of %d runs to start", planned.study.slug, len(left), len(planned.runs))
        record = partial(_record, retries=where.retries)
        outcomes = launcher(left, where, wait=wait, ended=record) if left else []
        for run in planned.runs.values():
            if (Path(run.workdir) / rundir.ERROR).exists() and find_results(run) is not None:
                (Path(run.workdir) / rundir.ERROR).unlink()
        return outcomes


def _failed_unseen(run: Run) -> Outcome | None:
    """Return how a job of a cluster has failed while no sweep was there to record it; None where none has."""
    ended = None if (Path(run.workdir) / rundir.ERROR).exists() else ended_of(run)
    return ended if ended is not None and ended.state == FAILED else None


def _record(outcome: Outcome, retries: int) -> None:
    """Note a failure in the directory of its run, so that it is not started again unless that is wanted."""
    path = Path(outcome.run.workdir) / rundir.ERROR
    if outcome.state != FAILED or outcome.detail in _KILLED:
        return
    before = rundir.read_json(path)["attempts"] if path.exists() else 0
    printed = "" if outcome.log is None else log_tail(outcome.log)
    text = "\n".join(part for part in (outcome.detail, printed) if part)
    rundir.write_json(path, {"error": text, "attempts": before + 1 + retries})


def count_progress(planned: StudyRuns) -> dict[str, int]:
    """Return the number of runs that are so far, for all of `PROGRESS`."""
    counts = Counter(progress_of(run) for run in planned.runs.values())
    return {name: counts[name] for name in PROGRESS}
