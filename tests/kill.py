"""Kill a job in the middle of its work, again and again, and let it finish.

A job is a function of a module, called as `job(ready, *arguments)` in a process of its own; it calls `ready()`
when the work that is worth killing begins, and may call it again. Processes are forked from a server that has
imported the heavy modules and has not started JAX, so one starts in a fraction of a second.
"""

import functools
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import numpy as np

# Beyond this a job hangs.
TIMEOUT_S = 120

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["jax", "flax.nnx", "optax", "orbax.checkpoint", "tljax.tasks", "pytest"])


def finish(job: Callable[..., None], *arguments: Any) -> float:
    """Run the job to its end and return the seconds it took from `ready()` on."""
    process = _start_until_ready(job, arguments)
    began = time.perf_counter()
    process.join(TIMEOUT_S)
    _check_ended(process)
    return time.perf_counter() - began


def kill_and_finish(job: Callable[..., None], *arguments: Any, kills: int, within_s: float, seed: int) -> int:
    """Run the job `kills` times, killed at a random moment, then once to its end.

    Args:
        job: see the module.
        arguments: of the job; the same each time, so that it goes on where it was killed.
        kills: number of runs to kill.
        within_s: each is killed at most so many seconds after `ready()`.
        seed: of the moments.

    Returns:
        The number of runs that were alive when they were to be killed.
    """
    delays_s = np.random.default_rng(seed).uniform(0, within_s, kills)
    num_killed = sum(kill_after(delay_s, job, *arguments) for delay_s in delays_s.tolist())
    finish(job, *arguments)
    return num_killed


def kill_after(delay_s: float, job: Callable[..., None], *arguments: Any) -> bool:
    """Run the job, killed so many seconds after `ready()`; tell whether it was alive then."""
    process = _start_until_ready(job, arguments)
    process.join(delay_s)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    _check_ended(process)
    return False


def dies(job: Callable[..., None], *arguments: Any) -> bool:
    """Run the job; tell whether it was killed, as by its own hand, and not finished."""
    process = _start_until_ready(job, arguments)
    process.join(TIMEOUT_S)
    if process.exitcode == -signal.SIGKILL:
        return True
    _check_ended(process)
    return False


def _start_until_ready(job: Callable[..., None], arguments: tuple) -> ForkServerProcess:
    reader, writer = _context.Pipe(duplex=False)
    process = _context.Process(target=_run, args=(job, writer, arguments))
    process.start()
    # The child's copy is then the only one, and closes when it ends.
    writer.close()
    assert wait([reader], TIMEOUT_S), "the job was not ready in time"
    return process


def _check_ended(process: ForkServerProcess) -> None:
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the job did not end in time")
    assert process.exitcode == 0, f"the job ended with exit code {process.exitcode}; its error is on stderr"


def _run(job: Callable[..., None], writer: Connection, arguments: tuple) -> None:
    # Sent once, as nobody reads a second time.
    job(functools.cache(lambda: writer.send(None)), *arguments)
