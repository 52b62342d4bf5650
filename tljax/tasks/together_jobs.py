"""The runs of a study on this machine: those that can train together in one process, the others each in its own."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import plain, rundir
from tljax.ablation.launch import launch
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, PENDING, Outcome, Run, prepare
from tljax.tasks.launching import find_results, launch_tasks
from tljax.tasks.together import Group, group, run_together
from tljax.tasks.together_files import folder_of, leave_groups
from tljax.tasks.together_members import shared_part

# The command that runs a job.
NAME = "together"
# In the directory of a job.
OUTCOMES = "outcomes.json"
AUTO, NEVER = "auto", "never"
_NAME_DIGITS = 16

log = logging.getLogger(__name__)

Ended = Callable[[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class Together:
    """Which runs of a study train together.

    Args:
        choice: "auto", all that can; or "never".
        budget_gb: memory for the runs of one program, in units of 10^9 bytes; None for half of that of the device, or
            of the machine where it has none of its own, divided by the processes that share it.

    Raises:
        ValueError: another choice, or no memory.
    """

    choice: str = AUTO
    budget_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.choice not in (AUTO, NEVER):
            raise ValueError(f"together is {self.choice!r}, wanted {AUTO!r} or {NEVER!r}")
        if self.budget_gb is not None and self.budget_gb <= 0:
            raise ValueError(f"together_gb is {self.budget_gb:g}, wanted more than 0")


def divide(runs: Sequence[Run]) -> list[Group]:
    """Divide runs into those that train together and those that run alone, each with the reason; nothing is read.

    A group that has begun goes on together. What has failed runs alone, where it can hurt no other.
    """
    begun = {id(run) for run in runs if folder_of(run) is not None}
    failed = [run for run in runs if id(run) not in begun and (Path(run.workdir) / rundir.ERROR).exists()]
    groups = [Group(runs=(run,), why_alone="it has failed before") for run in failed]
    for each in group([run for run in runs if run not in failed]):
        has_begun = any(id(run) in begun for run in each.runs)
        groups.append(Group(runs=each.runs, why_alone=None) if has_begun else each)
    order = {id(run): place for place, run in enumerate(runs)}
    return sorted(groups, key=lambda each: order[id(each.runs[0])])


def describe_division(runs: Sequence[Run], together: Together) -> list[str]:
    """Say which of the runs that are left train together, and of the others why they do not."""
    if together.choice == NEVER:
        return []
    lines, alone = [], Counter()
    for each in divide(runs):
        if each.why_alone is None:
            lines.append(f"together {len(each.runs)} in one process, as they differ in numbers alone")
        else:
            alone[each.why_alone] += len(each.runs)
    return [*lines, *(f"alone    {count}, as {reason}" for reason, count in alone.items())]


def launch_together(
    runs: Sequence[Run], where: Any, *, wait: bool = True, ended: Ended | None = None, together: Together
) -> list[Outcome]:
    """Start the runs that are not finished, as `launch_tasks` does, but for those that train together.

    Args:
        runs: of a study, each with a directory of its own.
        where: on this machine; on a cluster each run is a task of its own.
        wait: as for `launch_tasks`.
        ended: likewise.
        together: which of them do.

    Raises:
        ValueError: runs that have begun together are to go on alone, and another process works on them, beside what
            `launch_tasks` raises.
    """
    if together.choice == NEVER or not isinstance(where, LocalPool):
        leave_groups(runs)
        return launch_tasks(runs, where, wait=wait, ended=ended)
    divided = divide(runs)
    num_sharing = 1 if where.gpus_per_run else min(where.max_parallel, len(divided))
    started = [
        each.runs[0] if each.why_alone is not None else _job_of(each.runs, together.budget_gb, num_sharing)
        for each in divided
    ]
    for each, job in zip(divided, started, strict=True):
        if each.why_alone is None:
            _prepare(each.runs, Path(job.workdir))
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        for each in _outcomes_of(outcome):
            if each.state != PENDING and ended is not None:
                ended(each)

    for outcome in launch(started, where, find=_find, wait=wait, ended=note):
        outcomes += _outcomes_of(outcome)
    alone = [outcome.run for outcome in outcomes if outcome.state == PENDING]
    outcomes = [outcome for outcome in outcomes if outcome.state != PENDING]
    outcomes += launch_tasks(alone, where, wait=wait, ended=ended) if alone else []
    return _in_order(runs, outcomes)


def run_job(config: dict[str, Any], workdir: str | os.PathLike) -> dict[str, float]:
    """Train the runs of a job in this process, and write how each ended into its directory.

    Args:
        config: of `_job_of`.
        workdir: of the job.

    Returns:
        How many ended how.

    Raises:
        ValueError: another process works on this job or its runs.
        Preempted: the process was told to end; the same call goes on where it was.
    """
    with rundir.only_process(workdir):
        runs = [Run(**run) for run in config["runs"]]
        outcomes = run_together(runs, budget_gb=config["budget_gb"], num_sharing=config["num_sharing"])
        for outcome in outcomes:
            log.info("%s: %s %s", outcome.run.workdir, outcome.state, outcome.detail)
        rows = {str(each.run.workdir): {"state": each.state, "detail": each.detail} for each in outcomes}
        rundir.write_json(Path(workdir) / OUTCOMES, rows)
        return _counts(rows)


def _job_of(runs: Sequence[Run], budget_gb: float | None, num_sharing: int) -> Run:
    """Return what trains runs together, as a run, in a directory that all groups of their kind have."""
    members = [{"task": run.task, "config": dict(run.config), "workdir": _place(run)} for run in runs]
    beside = os.path.commonpath([os.path.dirname(member["workdir"]) for member in members])
    name = f"{NAME}_{plain.fingerprint(shared_part(runs[0].config))[:_NAME_DIGITS]}"
    config = {"runs": members, "budget_gb": budget_gb, "num_sharing": num_sharing}
    return Run(task=NAME, config=config, workdir=Path(beside, rundir.LAUNCH, name))


def _prepare(runs: Sequence[Run], workdir: Path) -> None:
    """Make the directories of runs that a job trains, as those of runs alone, and forget how earlier ones ended."""
    for run in runs:
        prepare(run)
    if not rundir.is_in_use(workdir):
        (workdir / OUTCOMES).unlink(missing_ok=True)


def _find(run: Run) -> dict[str, float] | None:
    """Return the results of a run, or of a job that says of all of its runs how they ended."""
    if run.task != NAME:
        return find_results(run)
    path = Path(run.workdir) / OUTCOMES
    rows = rundir.read_json(path) if path.exists() else {}
    return _counts(rows) if all(member["workdir"] in rows for member in run.config["runs"]) else None


def _counts(rows: dict[str, dict[str, str]]) -> dict[str, float]:
    states = [row["state"] for row in rows.values()]
    return {state: float(states.count(state)) for state in dict.fromkeys(states)}


def _outcomes_of(outcome: Outcome) -> list[Outcome]:
    """Return the outcomes of the runs of a job; a run has its own."""
    job = outcome.run
    if job.task != NAME:
        return [outcome]
    is_whole = outcome.state == DONE
    rows = rundir.read_json(Path(job.workdir) / OUTCOMES) if is_whole else {}
    found = []
    for run in (Run(**member) for member in job.config["runs"]):
        results, row = find_results(run), rows[str(run.workdir)] if is_whole else None
        if results is not None:
            found.append(Outcome(run=run, state=DONE, results=results))
        elif row is None:
            found.append(Outcome(run=run, state=outcome.state, detail=outcome.detail, log=outcome.log))
        else:
            # What is done no more, as somebody has removed it, is to be run.
            state = PENDING if row["state"] == DONE else row["state"]
            found.append(Outcome(run=run, state=state, detail=row["detail"]))
    return found


def _in_order(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[Outcome]:
    known = {_place(outcome.run): outcome for outcome in outcomes}
    return [known[_place(run)] for run in runs]


def _place(run: Run) -> str:
    return str(Path(run.workdir).absolute())
