"""Batches whose images are loaded ahead, by threads or by worker processes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

# More would wait for Python's lock, which Pillow holds while it resizes.
NUM_THREADS = 2
BATCHES_AHEAD = 3


class Row(NamedTuple):
    """One image to load.

    Args:
        place: in the stream, over all epochs: the source of all that is random.
        position: in the source.
        view: to show.
    """

    place: int
    position: int
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


# Closing one ends what prepares its batches.
Batches = Generator[dict[str, np.ndarray], None, None]
Load = Callable[[Row], UInt8[np.ndarray, "..."]]


def load_in_threads(orders: Iterator[Order], load: Load, like: Row) -> Batches:
    """Yield the batches of `orders`, the next ones in preparation by threads of this process.

    Args:
        orders: may be endless.
        load: returns the image of a row.
        like: an image of the shape of all, looked at where the orders ask for none.

    Raises:
        Exception: what `load` raises, at the turn of that batch.
    """
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


def _submit(order: Order, load: Load, pool: ThreadPoolExecutor) -> tuple[Order, list[Future]]:
    return order, [pool.submit(load, Row(*row)) for row in order.rows[order.mask].tolist()]
