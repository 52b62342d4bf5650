"""Runs on this machine, a number of them at a time, each in a process of its own."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tljax import rundir
from tljax.ablation.runs import (
    DONE,
    ENDED,
    FAILED,
    PREEMPTED,
    Find,
    Outcome,
    Run,
    begin_log,
    describe_status,
    is_interrupted,
    prepare,
)

PROGRAM = (sys.executable, "-u", "-m", "tljax.cli")
CHILD = Path(__file__).with_name("child.py")
POLL_S = 0.1
# What tells a process that it is one of several, started by another launcher around this one.
_CLUSTER_PREFIXES = ("SLURM_", "OMPI_", "PMIX_")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocalPool:
    """Processes of this machine.

    Args:
        max_parallel: runs at a time.
        gpus_per_run: GPUs that each run has for itself, of those of CUDA_VISIBLE_DEVICES; 0 shows all to every run.
        retries: times that a failed run is started again.
        max_requeues: times that an interrupted run, one that was sent SIGTERM by somebody else, is started again.
        stop_s: seconds that runs have to save, when the launcher is told to end.

    Raises:
        ValueError: a number out of range.
    """

    max_parallel: int = 1
    gpus_per_run: int = 0
    retries: int = 0
    max_requeues: int = 10
    stop_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        least = {"max_parallel": 1, "gpus_per_run": 0, "retries": 0, "max_requeues": 0, "stop_s": 0}
        problems = [
            f"{name} is {getattr(self, name)}, wanted at least {low}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if problems:
            raise ValueError(f"local pool: {'; '.join(problems)}")


@dataclass(kw_only=True)
class _Attempt:
    """A run that is waiting or running, and how often it was started for which reason."""

    run: Run
    failures: int = 0
    interruptions: int = 0
    process: subprocess.Popen | None = None
    slot: int = 0
    waits_for_other: bool = False
    started: float = 0.0


def run_all(
    runs: Sequence[Run], pool: LocalPool, find: Find, ended: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run all to their ends; return how they ended, in the order in which they did.

    `ended` is called with each outcome at once.

    Whatever ends this, Ctrl-C and `Preempted` among it, first ends the runs, which save what they have; a second
    Ctrl-C does not wait for them.

    Raises:
        ValueError: there are fewer GPUs than the pool is to give out.
    """
    if sys.platform != "linux":
        raise ValueError("a local pool needs Linux, which ends its runs with it; start the runs one by one")
    gpus = _gpus(pool)
    waiting = deque(_Attempt(run=run) for run in runs)
    active: list[_Attempt] = []
    outcomes: list[Outcome] = []
    with _ending(active, pool.stop_s):
        while waiting or active:
            _start_some(waiting, active, pool, gpus, outcomes, find)
            for attempt in [each for each in active if each.process and each.process.poll() is not None]:
                active.remove(attempt)
                outcome = _judge(attempt, pool, find)
                if outcome is None:
                    waiting.append(attempt)
                    continue
                outcomes.append(outcome)
                if ended is not None:
                    ended(outcome)
            time.sleep(POLL_S)
    return outcomes


def _gpus(pool: LocalPool) -> list[str]:
    """Return the names of the GPUs to give out; none where every run sees all."""
    wanted = pool.max_parallel * pool.gpus_per_run
    if not wanted:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        [str(index) for index in range(wanted)] if visible is None else [name for name in visible.split(",") if name]
    )
    if len(names) < wanted:
        raise ValueError(
            f"{pool.max_parallel} runs at a time with {pool.gpus_per_run} GPUs each want {wanted}, and "
            f"CUDA_VISIBLE_DEVICES names {len(names)}; lower max_parallel or gpus_per_run"
        )
    return names


def _start_some(
    waiting: deque[_Attempt],
    active: list[_Attempt],
    pool: LocalPool,
    gpus: Sequence[str],
    outcomes: list[Outcome],
    find: Find,
) -> None:
    """Start runs while there is room, past those in whose directories another process works."""
    for _ in range(len(waiting)):
        if len(active) >= pool.max_parallel:
            return
        attempt = waiting.popleft()
        run = attempt.run
        if rundir.is_in_use(run.workdir):
            if not attempt.waits_for_other:
                log.info("%s: another process works in it; waiting for that", run.workdir)
            attempt.waits_for_other = True
            waiting.append(attempt)
            continue
        results = find(run) if attempt.waits_for_other else None
        if results is not None:
            outcomes.append(Outcome(run=run, state=DONE, results=results, log=run.log()))
            continue
        attempt.slot = min(set(range(pool.max_parallel)) - {other.slot for other in active})
        attempt.process = _start(run, gpus[attempt.slot * pool.gpus_per_run :][: pool.gpus_per_run])
        attempt.started = time.monotonic()
        active.append(attempt)


def _start(run: Run, gpus: Sequence[str]) -> subprocess.Popen:
    command = [*PROGRAM, *prepare(run)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_CLUSTER_PREFIXES)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # What an earlier job of a cluster had to say.
    (run.folder / ENDED).unlink(missing_ok=True)
    begin_log(run.log())
    with open(run.log(), "ab") as file:
        # In a session of its own, so that Ctrl-C comes to the launcher alone, which passes it on as SIGTERM.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), *command], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    log.info("%s: started, process %d, log in %s", run.workdir, process.pid, run.log())
    return process


def _judge(attempt: _Attempt, pool: LocalPool, find: Find) -> Outcome | None:
    """Return how a run has ended; None where it is to be started again."""
    assert attempt.process is not None
    run, code = attempt.run, attempt.process.returncode
    results = find(run) if code == 0 else None
    if results is not None:
        log.info("%s: done in %.0f s", run.workdir, time.monotonic() - attempt.started)
        return Outcome(run=run, state=DONE, results=results, log=run.log())
    if is_interrupted(code):
        attempt.interruptions += 1
        if attempt.interruptions <= pool.max_requeues:
            log.info("%s: interrupted; it will go on", run.workdir)
            return None
        return Outcome(
            run=run,
            state=PREEMPTED,
            detail=f"interrupted {attempt.interruptions} times, see max_requeues",
            log=run.log(),
        )
    attempt.failures += 1
    if attempt.failures <= pool.retries:
        log.warning("%s: failed with %s, and starts again; log in %s", run.workdir, describe_status(code), run.log())
        return None
    detail = describe_status(code) if code else "ended without results, exit status 0"
    log.warning("%s: failed with %s, log in %s", run.workdir, detail, run.log())
    return Outcome(run=run, state=FAILED, detail=detail, log=run.log())


@contextlib.contextmanager
def _ending(active: Sequence[_Attempt], stop_s: float) -> Iterator[None]:
    """End what is still active when the context is left: at first with SIGTERM, so that it saves."""
    try:
        yield
    finally:
        alive = [attempt.process for attempt in active if attempt.process and attempt.process.poll() is None]
        try:
            _stop(alive, stop_s)
        finally:
            for process in alive:
                if process.poll() is None:
                    # With the workers that it may have.
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _stop(alive: Sequence[subprocess.Popen], stop_s: float) -> None:
    if not alive:
        return
    log.info("ending %d runs, which save what they have; Ctrl-C does not wait for them", len(alive))
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + stop_s
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "process %d did not end in %.0f s; it will go on from its latest checkpoint", process.pid, stop_s
            )
