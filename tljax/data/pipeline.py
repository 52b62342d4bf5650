"""Batches of decoded images: in order for extraction, as an endless random stream for training."""

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
from jaxtyping import Int, Int64

from tljax.data.augment import VIEWS, Augment, Preparation, Shrink, augment_image, augment_prepared, dihedral
from tljax.data.bank import Bank
from tljax.data.image_cache import CacheRoom, Images, open_image_cache
from tljax.data.loading import Batches, Load, Order, Row, load_in_threads
from tljax.data.sampling import UNIFORM, ExampleStream, check_sampling
from tljax.data.share import WHOLE, Share
from tljax.data.sources import Source
from tljax.data.splits import hashed_seed
from tljax.data.workers import check_num_workers, load_in_workers
from tljax.preprocess import Preprocess


def ordered_batches(
    source: Source,
    indices: Int[np.ndarray, " n"],
    preprocess: Preparation,
    batch_size: int,
    *,
    view: int = 0,
    num_workers: int = 0,
    share: Share = WHOLE,
    room: CacheRoom | None = None,
) -> Batches:
    """Read the images at `indices` once, in that order.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable; turns one decoded image into one of a fixed size.
        batch_size: images per batch, of all processes; the last batch is filled up with zeros.
        view: the one of `augment.dihedral` to show.
        num_workers: as for `training_batches`.
        share: the rows of each batch that this process reads.
        room: as for `training_batches`.

    Returns:
        {"image": uint8 [b side side 3], "index": int64 [b], "mask": bool [b], False where filled up}, of the share.

    Raises:
        ValueError: indices, batch_size or num_workers are out of range, or batch_size is not one to share evenly; from
            the iterator, an image cannot be decoded.
    """
    load = partial(_load, images=_open_images(source, preprocess, room))
    orders = _in_order(indices, batch_size, view, share, len(source))
    return _load_batches(orders, load, Row(0, int(indices[0]), view), num_workers)


def bank_batches(
    source: Source,
    indices: Int[np.ndarray, " n"],
    preprocess: Preprocess,
    batch_size: int,
    bank: Bank,
    *,
    num_workers: int = 0,
    share: Share = WHOLE,
) -> Batches:
    """Read the images at `indices` once, in that order, each under all views of a bank.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable.
        batch_size: images per batch, of all processes; the last batch is filled up with zeros.
        bank: which views.
        num_workers: as for `training_batches`.
        share: the rows of each batch that this process reads.

    Returns:
        {"image": uint8 [b views height width c], "index": int64 [b], "mask": bool [b], False where filled up}, of the
        share.

    Raises:
        ValueError: as `ordered_batches`.
    """
    load = partial(_load_views, images=_open_images(source, None, None), preprocess=preprocess, bank=bank)
    orders = _in_order(indices, batch_size, 0, share, len(source))
    return _load_batches(orders, load, Row(0, int(indices[0]), 0), num_workers)


def _in_order(indices: np.ndarray, batch_size: int, view: int, share: Share, n: int) -> Iterator[Order]:
    _check_indices(indices, n)
    rows = np.asarray(share.rows(batch_size))

    def orders() -> Iterator[Order]:
        for start in range(0, len(indices), batch_size):
            mask = start + rows < len(indices)
            index = np.zeros(len(rows), np.int64)
            index[mask] = indices[start + rows[mask]]
            yield Order(_rows(start + rows, index, view), mask, {"index": index, "mask": mask})

    return orders()


def training_batches(
    source: Source,
    indices: Int[np.ndarray, " n"],
    preprocess: Preparation,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    num_workers: int = 0,
    views: int | None = None,
    augment: Augment | None = None,
    sampling: str = UNIFORM,
    share: Share = WHOLE,
    room: CacheRoom | None = None,
) -> Batches:
    """Read the images at `indices` for ever, each epoch in a new order and changed at random.

    The batch of a step is a function of (seed, step) alone, whatever the start step, the number of workers
    and the number of processes that share it. Epochs follow each other without a gap, so a batch may hold
    the end of one and the start of the next.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable; turns one decoded image into one of a fixed size.
        batch_size: images per batch, of all processes.
        seed: the run's seed.
        start_step: the step whose batch comes first.
        num_workers: processes that decode; 0 decodes in threads of this one. They import the main module, so a script
            needs its `if __name__ == "__main__":`.
        views: of `Augment`, where that is all that changes; all 8 where neither this nor `augment` is given.
        augment: how images are changed; crops and TrivialAugment need a `Preprocess` to prepare them.
        sampling: "uniform" shows each image once an epoch; "class_balanced" each class equally often, see
            `sampling.epoch_indices`.
        share: the rows of each batch that this process reads; all shares of a step are the batch of one process.
        room: where images are kept, so that each is decoded once, see `image_cache`; None decodes them every time.

    Returns:
        {"image": uint8 [b height width c], "label": int32 [b], or the source's targets, float32 [b k], where it has
        them, "index": int64 [b], "view": int64 [b]}, of the share.

    Raises:
        ValueError: an argument is out of range, or batch_size is not one to share evenly; from the iterator, an image
            cannot be decoded.
    """
    _check_indices(indices, len(source))
    check_sampling(sampling)
    if start_step < 0:
        raise ValueError(f"start_step is {start_step}, wanted at least 0")
    if augment is None:
        augment = Augment(views=VIEWS if views is None else views)
    elif views is not None:
        raise ValueError(f"views is {views} and augment has views {augment.views}: give one of them")
    stream = ExampleStream(indices=indices, labels=source.labels, seed=seed, sampling=sampling, views=augment.views)
    shown = source.labels if source.targets is None else source.targets
    mine = np.asarray(share.rows(batch_size))

    def orders() -> Iterator[Order]:
        for step in itertools.count(start_step):
            places = step * batch_size + mine
            index, view = stream.take(places)
            columns = {"label": shown[index], "index": index, "view": view}
            yield Order(_rows(places, index, view), np.ones(len(places), bool), columns)

    load = partial(
        load_changed,
        images=_open_images(source, before_changes(augment, preprocess), room),
        preprocess=preprocess,
        augment=augment,
        seed=hashed_seed(seed, "augment"),
    )
    return _load_batches(orders(), load, Row(0, int(indices[0]), 0), num_workers)


def _load_batches(orders: Iterator[Order], load: Load, like: Row, num_workers: int) -> Batches:
    check_num_workers(num_workers)
    if num_workers:
        return load_in_workers(orders, load, like, num_workers=num_workers)
    return load_in_threads(orders, load, like)


def before_changes(augment: Augment, preprocess: Preparation) -> Preparation | None:
    """Return what is done to an image before anything random; None for nothing."""
    if not augment.needs_decoded:
        return preprocess
    if augment.short_side is None or not isinstance(preprocess, Preprocess):
        return None
    return Shrink(short_side=augment.short_side, interpolation=preprocess.interpolation)


def _open_images(source: Source, preprocess: Preparation | None, room: CacheRoom | None) -> Images:
    """Open what is loaded of each image before anything random: prepared, unless `preprocess` is None."""
    cache = None
    if room is not None:
        if not (preprocess is None or isinstance(preprocess, Preprocess | Shrink)):
            raise ValueError(
                f"images are kept under a name that a Preprocess gives, got {type(preprocess).__name__}; leave room out"
            )
        cache = open_image_cache(room, source, preprocess)
    return Images(source=source, preprocess=preprocess, cache=cache)


def _check_indices(indices: np.ndarray, n: int) -> None:
    if not len(indices) or indices.min() < 0 or indices.max() >= n:
        got = f"from {indices.min()} to {indices.max()}" if len(indices) else "empty"
        raise ValueError(f"indices are {got}, wanted positions from 0 to {n - 1}")


def _rows(places: np.ndarray, index: np.ndarray, view: np.ndarray | int) -> Int64[np.ndarray, "b 3"]:
    return np.stack(np.broadcast_arrays(places, index, np.int64(view)), axis=1)


# At module level so that worker processes can unpickle them.


def load_changed(row: Row, images: Images, preprocess: Preparation, augment: Augment, seed: int) -> np.ndarray:
    """Return an image as training shows it; `seed` is of the changes alone."""
    # By the place in the stream alone: a process that reads other rows draws the same.
    generator = np.random.Generator(np.random.Philox(key=[seed, row.place]))
    if augment.needs_decoded:
        return augment_image(images[row.position], generator, augment, preprocess, view=row.view)
    return augment_prepared(images[row.position], generator, augment, view=row.view)


def _load(row: Row, images: Images) -> np.ndarray:
    return dihedral(images[row.position], row.view)


def _load_views(row: Row, images: Images, preprocess: Preprocess, bank: Bank) -> np.ndarray:
    return bank.show(images[row.position], row.position, preprocess)
