"""How far runs are that SLURM has, told from their directories and the queue alone."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, sleep

from tljax import rundir
from tljax.ablation.runs import (
    DONE,
    FAILED,
    JOB,
    PENDING,
    PREEMPTED,
    RUNNING,
    Find,
    Outcome,
    Run,
    ended_of,
)
from tljax.ablation.slurm_queue import Queued, read_queue_patiently

# A job may be out of the queue before its last files are seen here; it is given so many looks more.
_MORE_LOOKS = 2
# Of what left no word: no mistake of its config.
LOST = "the job has ended without results: a process lost, out of memory, cancelled, or over its limit before it saved"

log = logging.getLogger(__name__)

Queue = Mapping[tuple[str, int], Queued]
Ended = Callable[[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How `follow` waits.

    Args:
        poll_s: seconds between two looks.
        wait_min: minutes until it gives up, of which there may be none.
        retries: times that a failed run is submitted again.
    """

    poll_s: float
    wait_min: float
    retries: int


@dataclass(kw_only=True)
class _Followed:
    """A run, how many looks have missed it in the queue, how often it has failed, and whether its end was told."""

    run: Run
    misses: int = 0
    failures: int = 0
    is_told: bool = False


def follow(
    runs: Sequence[Run], find: Find, submit: Callable[[Sequence[Run]], None], patience: Patience, ended: Ended | None
) -> list[Outcome]:
    """Wait until nothing more comes of the runs, or the patience ends; return how far they are.

    Args:
        runs: all of them submitted.
        find: see `launch`.
        submit: for runs that are to be tried again.
        patience: how long.
        ended: called with the outcome of each run that has ended, at once.

    Raises:
        OSError: SLURM does not answer.
    """
    followed = [_Followed(run=run) for run in runs]
    deadline = monotonic() + 60 * patience.wait_min
    said = ""
    while True:
        # Before the directories: what has left the queue by now has left its results before.
        queue = read_queue_patiently()
        looks = [_look(each, queue, find) for each in followed]
        failed = [
            each
            for each, (outcome, is_over) in zip(followed, looks, strict=True)
            if is_over and outcome.state == FAILED and each.failures < patience.retries
        ]
        if failed:
            for each in failed:
                each.failures += 1
            submit([each.run for each in failed])
            continue
        if ended is not None:
            _tell(followed, looks, ended)
        states = Counter(outcome.state for outcome, _ in looks)
        text = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        if text != said:
            log.info("%s", text)
            said = text
        if all(is_over for _, is_over in looks) or monotonic() >= deadline:
            return [outcome for outcome, _ in looks]
        sleep(patience.poll_s)


def _tell(followed: Sequence[_Followed], looks: Sequence[tuple[Outcome, bool]], ended: Ended) -> None:
    for each, (outcome, is_over) in zip(followed, looks, strict=True):
        if is_over and not each.is_told:
            each.is_told = True
            ended(outcome)


def queued(run: Run, queue: Queue) -> Queued | None:
    """Return the job of a run; None where SLURM has none."""
    file = run.folder / JOB
    if not file.exists():
        return None
    job = rundir.read_json(file)
    return queue.get((job["name"], job["index"]))


def _look(followed: _Followed, queue: Queue, find: Find) -> tuple[Outcome, bool]:
    """Say how far a run is, and whether that is its end for now."""
    run = followed.run
    results = find(run)
    if results is not None:
        return Outcome(run=run, state=DONE, results=results, log=run.log()), True
    job = queued(run, queue)
    if job is not None:
        followed.misses = 0
        return _in_queue(run, job), False
    ended = ended_of(run)
    if ended is not None:
        return ended, True
    followed.misses += 1
    if followed.misses <= _MORE_LOOKS:
        return Outcome(run=run, state=RUNNING, detail="has left the queue", log=run.log()), False
    return Outcome(run=run, state=FAILED, detail=LOST, log=run.log()), True


def _in_queue(run: Run, job: Queued) -> Outcome:
    if job.state != "PENDING":
        return Outcome(run=run, state=RUNNING, detail=f"job {job.job_id} is {job.state}", log=run.log())
    detail = f"job {job.job_id} waits: {job.reason}"
    if job.restarts:
        return Outcome(run=run, state=PREEMPTED, detail=detail, log=run.log())
    return Outcome(run=run, state=PENDING, detail=detail)
