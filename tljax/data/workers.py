"""Worker processes that load images into batches in shared memory.

The process that reads the batches writes tickets, each some rows of a batch, into one pipe that all workers read
from: who is free takes the next. A pipe hands out records of one size whole, so nothing is locked that a killed
worker could leave locked; and as nobody else holds its writing end, workers end when that process does, however it
ends. What a worker has done it says through a pipe of its own, whose end tells that it died.

A batch is handed out where it was written, without a copy, and its place is used again when nobody refers to it any
more.
"""

import multiprocessing
import os
import pickle
import weakref
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import cast

import numpy as np

from tljax.data.loading import BATCHES_AHEAD, Batches, Load, Order, Row
from tljax.data.slots import SlotLayout
from tljax.data.worker import NOT_BEGUN, TICKET, Done, work

# Batches that a reader may hold on to before the next ones are copied for it.
BATCHES_LENT = 4
# Few, so that no worker is idle at the end of a batch; more than one, as each ticket takes some 50 us.
ROWS_PER_TICKET = 16
# What a worker imports; the server that workers are forked from does so once.
PRELOADED = ("__main__", "tljax.data.pipeline")

_CLOSING_S = 10.0


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_num_workers(num_workers: int) -> None:
    """Refuse a number of worker processes that cannot help.

    Raises:
        ValueError: it is negative, or above the number of cores that this process may use.
    """
    cores = num_cores()
    if not 0 <= num_workers <= cores:
        raise ValueError(
            f"num_workers is {num_workers}, wanted 0 to {cores}: this process may use {cores} cores, and workers "
            "beyond them would only wait for one another; 0 loads in threads"
        )


def load_in_workers(orders: Iterator[Order], load: Load, like: Row, *, num_workers: int) -> Batches:
    """Yield the batches of `orders`, the next ones in preparation by processes.

    Args:
        orders: may be endless, all of one size.
        load: returns the image of a row; picklable.
        like: an image of the shape of all.
        num_workers: at least 1.

    Raises:
        ValueError: `load` cannot be pickled, or not unpickled in a worker.
        ChildProcessError: a worker died.
        Exception: what `load` raises, at the turn of that batch.
    """
    job = _pickled(load)
    first = next(orders, None)
    if first is None:
        return
    layout = SlotLayout(len(first.rows), load(like).shape, BATCHES_AHEAD + BATCHES_LENT)
    with _Pool(job, layout, num_workers) as pool:
        pending = deque([pool.submit(first)])
        while pending:
            while len(pending) < BATCHES_AHEAD and pool.free and (order := next(orders, None)) is not None:
                pending.append(pool.submit(order))
            order, slot = pending.popleft()
            pool.finish(slot)
            is_lent = len(pool.free) + len(pending) >= BATCHES_AHEAD
            yield {"image": pool.lend(slot) if is_lent else pool.copy(slot), **order.columns}


def _pickled(load: Load) -> bytes:
    try:
        return pickle.dumps(load)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the data source or the preparation of its images cannot be sent to worker processes: {error}; make it "
            "of classes and functions at the level of a module, or set num_workers to 0"
        ) from error


class _Pool:
    """Workers, their memory and their pipes, with a number of slots that are free."""

    def __init__(self, job: bytes, layout: SlotLayout, num_workers: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._layout = layout
        self._memory = context.RawArray("B", layout.slot_bytes * layout.num_slots)
        self._missing, self._errors = [0] * layout.num_slots, [list[Done]() for _ in range(layout.num_slots)]
        self.free = deque(range(layout.num_slots))
        reader, self._tickets = context.Pipe(duplex=False)
        self._workers: dict[Connection, BaseProcess] = {}
        # Also where nobody closes it: at the end of a process, those it has started are waited for.
        self.close = Finalize(self, _close, (self._tickets, self._workers), exitpriority=1)
        for number in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=work, args=(job, layout, self._memory, reader, sender), name=f"loader {number}", daemon=True
            )
            process.start()
            # The worker's copy is then the only one, and closes when it ends.
            sender.close()
            self._workers[receiver] = process
        reader.close()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, order: Order) -> tuple[Order, int]:
        """Hand the rows of a batch to the workers; return it with its slot."""
        slot = self.free.popleft()
        self._layout.rows(self._memory, slot)[:] = order.rows
        wanted = np.flatnonzero(order.mask)
        if len(wanted) < len(order.rows):
            self._layout.images(self._memory, slot)[~order.mask] = 0
        # Padding is at the end.
        self._missing[slot], self._errors[slot] = len(wanted), []
        for start in range(0, len(wanted), ROWS_PER_TICKET):
            stop = min(start + ROWS_PER_TICKET, len(wanted))
            os.write(self._tickets.fileno(), TICKET.pack(slot, start, stop))
        return order, slot

    def finish(self, slot: int) -> None:
        """Wait until a slot is filled; raise the first of its errors."""
        while self._missing[slot]:
            for receiver in wait(list(self._workers)):
                done = self._receive(cast(Connection, receiver))
                self._missing[done.slot] -= done.num_rows
                if done.error is not None:
                    self._errors[done.slot].append(done)
        if self._errors[slot]:
            first = min(self._errors[slot], key=lambda done: done.start)
            assert first.error is not None
            first.error.add_note(f"in a worker process:\n{first.where}")
            raise first.error

    def _receive(self, receiver: Connection) -> Done:
        try:
            done: Done = receiver.recv()
        except (EOFError, OSError) as error:
            process = self._workers[receiver]
            process.join(_CLOSING_S)
            raise ChildProcessError(
                f"worker process {process.pid}, which loads images, died with exit code {process.exitcode}; -9 is "
                "often the system's answer to a lack of memory: lower execution.num_workers or finetune.batch_size. "
                "Run again to go on from the last checkpoint"
            ) from error
        if done.slot == NOT_BEGUN:
            raise ValueError(
                f"a worker process cannot unpickle the data source or the preparation of its images: {done.error}; "
                "their classes have to be importable there, or set num_workers to 0"
            ) from done.error
        return done

    def lend(self, slot: int) -> np.ndarray:
        """Return the images of a slot, which is free again when nobody refers to them any more."""
        images = self._layout.images(self._memory, slot)
        # What numpy makes views of views refer to.
        weakref.finalize(images.base, self.free.append, slot).atexit = False
        return images

    def copy(self, slot: int) -> np.ndarray:
        """Return a copy of the images of a slot, which is free again."""
        images = self._layout.images(self._memory, slot).copy()
        self.free.append(slot)
        return images


def _close(tickets: Connection, workers: dict[Connection, BaseProcess]) -> None:
    """End the workers: they find no more tickets."""
    tickets.close()
    for receiver, process in workers.items():
        receiver.close()
        process.join(_CLOSING_S)
        if process.is_alive():
            process.kill()
            process.join()
