"""What a worker process does: load what tickets say, until there are no more."""

import ctypes
import os
import pickle
import signal
import struct
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tljax.data.loading import Row
from tljax.data.slots import SlotLayout

# Slot, first row, the row after the last.
TICKET = struct.Struct("<qqq")
NOT_BEGUN = -1

# Of glibc's malloc.h; blocks that are larger than its greatest threshold go their own way.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**25


class Done(NamedTuple):
    """What a worker says of a ticket, and of its error if there was one; of `NOT_BEGUN`, that it cannot begin."""

    slot: int
    start: int = 0
    num_rows: int = 0
    error: BaseException | None = None
    where: str = ""


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next image, where the C library can: glibc.

    Otherwise it goes back to the system with every image, and comes back one page fault after the other: a sixth of
    all time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def work(job: bytes, layout: SlotLayout, memory: Any, tickets: Connection, results: Connection) -> None:
    """Run a worker process.

    Args:
        job: the pickled function that loads a row.
        layout: of the memory.
        memory: shared with the process that reads the batches.
        tickets: end of the pipe that they come from.
        results: end of the pipe that takes what has been done.
    """
    # Terminals and clusters signal all processes of a job; when workers end is for the one that reads to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_freed_memory()
    try:
        load = pickle.loads(job)
    except BaseException as error:
        results.send(_failed(Done(NOT_BEGUN), error))
        return
    while ticket := os.read(tickets.fileno(), TICKET.size):
        slot, start, stop = TICKET.unpack(ticket)
        rows, images = layout.rows(memory, slot), layout.images(memory, slot)
        done = Done(slot, start, stop - start)
        try:
            for position in range(start, stop):
                images[position] = load(Row(*rows[position].tolist()))
        except BaseException as error:
            done = _failed(done, error)
        try:
            results.send(done)
        except BrokenPipeError:
            return


def _failed(done: Done, error: BaseException) -> Done:
    """Add an error, which is raised again where the batch is read."""
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PicklingError, TypeError, AttributeError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return done._replace(error=error, where=traceback.format_exc())
