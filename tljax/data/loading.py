"""Batches whose images are loaded ahead, several at a time."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

# Pillow and simplejpeg decode without holding Python's lock.
NUM_THREADS = 2
BATCHES_AHEAD = 3


class Row(NamedTuple):
    """One image to load.

    Args:
        place: in the stream, over all epochs: the source of all that is random.
        index: in the source.
        view: to show.
    """

    place: int
    index: int
    view: int


class Order(NamedTuple):
    """A batch to load.

    Args:
        rows: the fields of a `Row` for each row of the batch.
        mask: rows to load; the others are filled with zeros.
        columns: what the batch holds beside "image".
    """

    rows: Int64[np.ndarray, "b 3"]
    mask: Bool[np.ndarray, " b"]
    columns: dict[str, np.ndarray]


Load = Callable[[Row], UInt8[np.ndarray, "..."]]


def load_batches(
    orders: Iterator[Order], load: Load, like: Row, *, num_workers: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of `orders`, the next ones in preparation.

    Args:
        orders: may be endless.
        load: returns the image of a row; picklable.
        like: an image of the shape of all, looked at where the orders ask for none.
        num_workers: processes that load; 0 for threads of this one.

    Raises:
        ValueError: num_workers is out of range; from the iterator, whatever `load` raises, at the turn of that batch.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}, wanted at least 0")
    return _batches(orders, load, like, num_workers)


def _batches(orders: Iterator[Order], load: Load, like: Row, num_workers: int) -> Iterator[dict[str, np.ndarray]]:
    pool: Executor
    if num_workers:
        pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("forkserver"))
    else:
        pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decode")
    try:
        pending = deque(_submit(order, load, pool) for order in islice(orders, BATCHES_AHEAD))
        # A process whose share of all batches is padding has to look at an image for their shape.
        first = next(chain(*(futures for _, futures in pending)), None) or pool.submit(load, like)
        shape = first.result().shape
        while pending:
            order, futures = pending.popleft()
            images = np.zeros((len(order.rows), *shape), np.uint8)
            for position, future in zip(np.flatnonzero(order.mask), futures, strict=True):
                images[position] = future.result()
            yield {"image": images, **order.columns}
            pending.extend(_submit(order, load, pool) for order in islice(orders, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(order: Order, load: Load, pool: Executor) -> tuple[Order, list[Future]]:
    return order, [pool.submit(load, Row(*row)) for row in order.rows[order.mask].tolist()]
