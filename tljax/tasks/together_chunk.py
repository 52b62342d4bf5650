"""One program for some runs of a group: from their locks to their results."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from tljax import rundir
from tljax.ablation.runs import DONE, FAILED, Outcome
from tljax.tasks import finetune
from tljax.tasks.caching import train_tflops
from tljax.tasks.execution import execution_of
from tljax.tasks.feed import Feed
from tljax.tasks.inputs import Inputs
from tljax.tasks.together_files import close_group, found_group
from tljax.tasks.together_members import Member
from tljax.tasks.together_program import Program, can_be_resident
from tljax.tasks.together_train import Trained, train

# In the environment of a run that trained with others: its place among them, and their program.
TOGETHER = "together"


def run_chunk(
    members: Sequence[Member], feed: Feed, program: Program | None, inputs: Inputs, folder: Path | None, budget: int,
    only: int | None = None,
) -> list[Outcome]:  # fmt: skip
    """Train members side by side and finish their directories.

    Args:
        members: of one group.
        feed: of the stored prefix.
        program: for so many runs, or others; None makes one.
        inputs: of all of them.
        folder: of the group, if it has begun.
        budget: what a program that is made here may take, in bytes.
        only: the place of the one member that writes; None for all that are not done.

    Returns:
        How the members that write ended.

    Raises:
        ValueError: another process works in one of the directories.
        Preempted: the process was told to end.
        RuntimeError: something has moved that was frozen.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as locks:
        for workdir in dict.fromkeys(member.workdir for member in members):
            locks.enter_context(rundir.only_process(workdir))
        if program is None or program.num_runs != len(members):
            program = Program(members[0], feed, len(members), is_resident=can_be_resident(feed, budget))
        left = [place for place in range(len(members)) if only in (None, place) and not members[place].is_done]
        for place in left:
            member = members[place]
            facts = {TOGETHER: {"place": place, **program.describe()}}
            execution = dataclasses.asdict(execution_of(member.config))
            rundir.start(member.workdir, finetune.NAME, member.identity, inputs.identity, execution, more=facts)
        folder = found_group([member.run for member in members]) if folder is None else folder
        for place in left:
            members[place].note_plan()
        trained = train(members, program, folder, left)
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
        plan, split = member.plan, member.split
        scores = [(split.val, of_val[place]), (split.test, of_test[place])]
        found = finetune.conclude(member.workdir, plan, feed, split, result, step, scores, flops)
        # Of the time of all, a share each.
        seconds = (time.monotonic() - began) / len(members)
        rundir.write_json(done, {"seconds": seconds, **found})
        outcomes.append(Outcome(run=member.run, state=DONE, results=rundir.read_json(done)))
    return outcomes
