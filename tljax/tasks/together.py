"""Many fine-tuning runs in one program, each of which ends as the run that it would have been alone."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tljax import processes, rundir
from tljax.ablation.runs import DONE, FAILED, PENDING, Outcome, Run
from tljax.finetune.checkpoint import last_saved
from tljax.tasks import TASKS, finetune
from tljax.tasks.caching import train_tflops
from tljax.tasks.compiled import keep_compiled
from tljax.tasks.execution import execution_of, identity_of
from tljax.tasks.feed import Feed, open_feed
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.sections import select
from tljax.tasks.together_files import close_group, folder_of, found_group, members_of
from tljax.tasks.together_members import Group, Member, group, open_members
from tljax.tasks.together_program import Program, budget_bytes, can_be_resident, fit_program
from tljax.tasks.together_train import Trained, train

__all__ = ["Group", "group", "run_all", "run_together"]

log = logging.getLogger(__name__)


def run_all(runs: Sequence[Run], *, budget_gb: float | None = None, most_runs: int | None = None) -> list[Outcome]:
    """Run what can train together together, and the rest one by one, all in this process.

    Args:
        runs: of a study, each with a directory of its own; those that are finished are left alone.
        budget_gb: as for `run_together`.
        most_runs: likewise.

    Returns:
        How each run ended, in their order. A failure of one is no failure of the others.

    Raises:
        Preempted: the process was told to end; the same call goes on where it was.
    """
    outcomes: dict[Path, Outcome] = {}
    for each in group(runs):
        if each.why_alone is not None:
            log.info("%s runs alone: %s", each.runs[0].workdir, each.why_alone)
            found = [Outcome(run=run, state=PENDING, detail=each.why_alone) for run in each.runs]
        else:
            found = run_together(each.runs, budget_gb=budget_gb, most_runs=most_runs)
        for outcome in found:
            key = Path(outcome.run.workdir).absolute()
            outcomes[key] = run_alone(outcome.run) if outcome.state == PENDING else outcome
    return [outcomes[Path(run.workdir).absolute()] for run in runs]


def run_alone(run: Run) -> Outcome:
    """Run in this process what the command line would run."""
    function, _ = TASKS[run.task]
    try:
        return Outcome(run=run, state=DONE, results=function(run.config, run.workdir))
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        log.error("%s: %s", run.workdir, error)
        return Outcome(run=run, state=FAILED, detail=str(error))


def run_together(runs: Sequence[Run], *, budget_gb: float | None = None, most_runs: int | None = None) -> list[Outcome]:
    """Train the runs of one `Group` in as few programs as memory allows, and leave a run directory of each.

    Runs that are finished are left alone. A group that was cut off goes on from its last checkpoint.

    Args:
        runs: of one group.
        budget_gb: memory that the runs of one program may take, in units of 10^9 bytes; None for half of that of the
            device, or of the machine where the device has none of its own.
        most_runs: that train side by side at most; None for all that fit.

    Returns:
        How each run ended, in their order: "done" with its results, "failed" with its error, or "pending" with the
        reason why it has to run alone, which it has not.

    Raises:
        Preempted: the process was told to end; the same call goes on where it was.
    """
    outcomes: dict[Path, Outcome] = {}
    left = []
    for run in runs:
        outcome = _outcome_so_far(run)
        if outcome is None:
            left.append(run)
        else:
            outcomes[_place(run)] = outcome
    if left:
        for outcome in _run_left(left, budget_bytes(budget_gb), most_runs):
            outcomes[_place(outcome.run)] = outcome
    return [dataclasses.replace(outcomes[_place(run)], run=run) for run in runs]


def _place(run: Run) -> Path:
    return Path(run.workdir).absolute()


def _outcome_so_far(run: Run) -> Outcome | None:
    """Return what there is to say of a run without any work; None where it is to train."""
    if processes.are_several():
        return Outcome(run=run, state=PENDING, detail="several processes train one run")
    try:
        found = rundir.find(run.workdir, run.task, identity_of(select(run.task, run.config)))
    except ValueError as error:
        return Outcome(run=run, state=FAILED, detail=str(error))
    if found is not None:
        return Outcome(run=run, state=DONE, results=found)
    if folder_of(run) is None and last_saved(Path(run.workdir) / finetune.CHECKPOINTS):
        return Outcome(run=run, state=PENDING, detail="it has begun alone")
    return None


def _run_left(runs: Sequence[Run], budget: int, most_runs: int | None) -> list[Outcome]:
    """Go on with the groups that have begun, then begin with the other runs."""
    config = select(finetune.NAME, runs[0].config)
    outcomes: list[Outcome] = []
    with keep_compiled(execution_of(config).compiled_folder(_place(runs[0]))):
        inputs = open_inputs(config)
        begun = dict.fromkeys(folder for folder in map(folder_of, runs) if folder is not None)
        for folder in begun:
            outcomes += _run_begun(folder, runs, inputs, budget)
        fresh = [run for run in runs if folder_of(run) is None and _place(run) not in map(_place, _runs_of(outcomes))]
        return [*outcomes, *(_run_fresh(fresh, inputs, budget, most_runs) if fresh else [])]


def _runs_of(outcomes: Sequence[Outcome]) -> list[Run]:
    return [outcome.run for outcome in outcomes]


def _run_begun(folder: Path, runs: Sequence[Run], inputs: Inputs, budget: int) -> list[Outcome]:
    """Go on with a group, all of whose members go on, as their arrays are stacked."""
    given = {_place(run): run for run in runs}
    own = [given.get(_place(run)) or run for run in members_of(folder)]
    members, refused = open_members(own, inputs)
    if refused:
        raise ValueError(
            f"the group {folder} has begun with runs that cannot go on together: "
            + "; ".join(f"{own[place].workdir}: {why}" for place, why in refused.items())
        )
    feed = open_feed(members[0].plan)
    return _run_chunk(members, feed, None, inputs, folder, budget)


def _run_fresh(runs: Sequence[Run], inputs: Inputs, budget: int, most_runs: int | None) -> list[Outcome]:
    for run in runs:
        Path(run.workdir).mkdir(parents=True, exist_ok=True)
    members, refused = open_members(runs, inputs)
    outcomes = [Outcome(run=runs[place], state=PENDING, detail=why) for place, why in refused.items()]
    if len(members) < 2:
        why = "no other run can train with it"
        return [*outcomes, *(Outcome(run=each.run, state=PENDING, detail=why) for each in members)]
    feed = open_feed(members[0].plan)
    try:
        program = fit_program(members, feed, budget, most_runs)
    except MemoryError as error:
        return [*outcomes, *(Outcome(run=each.run, state=PENDING, detail=str(error)) for each in members)]
    num_chunks = -(-len(members) // program.num_runs)
    for places in np.array_split(np.arange(len(members)), num_chunks):
        chunk = [members[place] for place in places.tolist()]
        outcomes += _run_chunk(chunk, feed, program, inputs, None, budget)
    return outcomes


def _run_chunk(
    members: Sequence[Member], feed: Feed, program: Program | None, inputs: Inputs, folder: Path | None, budget: int
) -> list[Outcome]:
    """Train members side by side and finish their directories."""
    began = time.monotonic()
    with contextlib.ExitStack() as locks:
        for member in members:
            locks.enter_context(rundir.only_process(member.workdir))
        if program is None or program.num_runs != len(members):
            program = Program(members[0], feed, len(members), is_resident=can_be_resident(feed, budget))
        left = [member for member in members if not (member.workdir / rundir.DONE).exists()]
        for member in left:
            facts = {"together": {"place": members.index(member), **program.describe()}}
            execution = dataclasses.asdict(execution_of(member.config))
            rundir.start(member.workdir, finetune.NAME, member.identity, inputs.identity, execution, more=facts)
        folder = found_group([member.run for member in members]) if folder is None else folder
        for member in left:
            member.note_plan()
        trained = train(members, program, folder)
        outcomes = _conclude(members, trained, program, feed, began)
        close_group(folder, [member.run for member in members])
    return outcomes


def _conclude(members: Sequence[Member], trained: Trained, program: Program, feed: Feed, began: float) -> list[Outcome]:
    """Test what is not tested yet, and write the results."""
    inputs = members[0].plan.inputs
    before, after = inputs.identity["params"], inputs.pretrained.fingerprint()
    if before != after:
        raise RuntimeError(f"the pretrained params moved: hash {before} before, {after} after; please report this")
    outcomes = [
        Outcome(run=members[place].run, state=FAILED, detail=why) for place, why in sorted(trained.failed.items())
    ]
    if not trained.results:
        return outcomes
    some = next(iter(trained.results.values()))
    every = [trained.results.get(place, some) for place in range(len(members))]
    of_val, of_test = (
        program.score_results(every, [getattr(member.split, part) for member in members]) for part in ("val", "test")
    )
    # As many of each: they have the same shapes and the same number of steps.
    flops = train_tflops([members[0].plan])
    for place, result in trained.results.items():
        member, step = members[place], trained.steps[place]
        done = member.workdir / rundir.DONE
        if not done.exists():
            plan, split = member.plan, member.split
            scores = [(split.val, of_val[place]), (split.test, of_test[place])]
            found = finetune.conclude(member.workdir, plan, feed, split, result, step, scores, flops)
            # Of the time of all, a share each.
            seconds = (time.monotonic() - began) / len(members)
            rundir.write_json(done, {"seconds": seconds, **found})
        outcomes.append(Outcome(run=member.run, state=DONE, results=rundir.read_json(done)))
    return outcomes
