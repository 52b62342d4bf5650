"""What a run does when it is told to end: at SIGTERM, which clusters send before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jax.experimental import multihost_utils

from tljax.processes import Preempted, are_several


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Raise `Preempted` where SIGTERM comes, as Ctrl-C does: for work that loses nothing when it is cut off.

    Of several processes the runtime of JAX takes the signal, and hands it out by `notices`.
    """
    with _handling(_raise):
        yield


@contextlib.contextmanager
def notices() -> Iterator[Callable[[int], bool]]:
    """Yield a function that tells, after each step, whether to save and end.

    It takes the number of steps so far. Of several processes all are told at the same step, whichever got the signal;
    all must ask after every step.
    """
    if are_several():
        yield multihost_utils.reached_preemption_sync_point
        return
    caught = threading.Event()

    def note(*_: Any) -> None:
        caught.set()
        # Who sends it twice does not want to wait for the step.
        signal.signal(signal.SIGTERM, _raise)

    with _handling(note):
        yield lambda step: caught.is_set()


def _raise(*_: Any) -> None:
    raise Preempted("told to end by SIGTERM; run the same command again, and it goes on where it was")


@contextlib.contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[None]:
    is_possible = threading.current_thread() is threading.main_thread() and not are_several()
    if not is_possible:
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
