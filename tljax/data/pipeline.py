"""Batches of decoded images: in order for extraction, as an endless random stream for training."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from tljax.data.augment import VIEWS, Augment, Preparation, augment_image, dihedral
from tljax.data.bank import Bank
from tljax.data.decode import decode_image
from tljax.data.sampling import UNIFORM, ExampleStream, check_sampling
from tljax.data.sources import Source
from tljax.data.splits import hashed_seed
from tljax.preprocess import Preprocess

# Grain's default buffers 500 batches: gigabytes of images.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
BATCHES_PER_WORKER = 2


def ordered_batches(
    source: Source, indices: Int[np.ndarray, " n"], preprocess: Preparation, batch_size: int, *, view: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Read the images at `indices` once, in that order.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable; turns one decoded image into one of a fixed size.
        batch_size: images per batch; the last batch is filled up with zeros.
        view: the one of `augment.dihedral` to show.

    Returns:
        {"image": uint8 [b side side 3], "index": int64 [b], "mask": bool [b], False where filled up}.

    Raises:
        ValueError: indices or batch_size are out of range; from the iterator, an image cannot be decoded.
    """
    _check(indices, batch_size, len(source))
    return _in_order(indices, batch_size, view, partial(_load, source=source, preprocess=preprocess))


def bank_batches(
    source: Source, indices: Int[np.ndarray, " n"], preprocess: Preprocess, batch_size: int, bank: Bank
) -> Iterator[dict[str, np.ndarray]]:
    """Read the images at `indices` once, in that order, each under all views of a bank.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable.
        batch_size: images per batch; the last batch is filled up with zeros.
        bank: which views.

    Returns:
        {"image": uint8 [b views height width c], "index": int64 [b], "mask": bool [b], False where filled up}.

    Raises:
        ValueError: as `ordered_batches`.
    """
    _check(indices, batch_size, len(source))
    return _in_order(indices, batch_size, 0, partial(_load_views, source=source, preprocess=preprocess, bank=bank))


def _in_order(
    indices: np.ndarray, batch_size: int, view: int, load: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
    images = (
        grain.MapDataset.range(len(indices))
        .map(partial(_show, indices=indices, view=view))
        .map(load)
        .map(_mark)
        .batch(batch_size, batch_fn=partial(grain.experimental.batch_and_pad, batch_size=batch_size, pad_value=0))
    )
    return iter(images.to_iter_dataset(READ_OPTIONS))


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
) -> Iterator[dict[str, np.ndarray]]:
    """Read the images at `indices` for ever, each epoch in a new order and changed at random.

    The batch of a step is a function of (seed, step) alone, whatever the start step and the number of
    workers. Epochs follow each other without a gap, so a batch may hold the end of one and the start of
    the next.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable; turns one decoded image into one of a fixed size.
        batch_size: images per batch.
        seed: the run's seed.
        start_step: the step whose batch comes first.
        num_workers: processes that decode; 0 decodes in threads of this one. They are spawned, so a script
            needs its `if __name__ == "__main__":`.
        views: of `Augment`, where that is all that changes; all 8 where neither this nor `augment` is given.
        augment: how images are changed; crops and TrivialAugment need a `Preprocess` to prepare them.
        sampling: "uniform" shows each image once an epoch; "class_balanced" each class equally often, see
            `sampling.epoch_indices`.

    Returns:
        {"image": uint8 [b height width c], "label": int32 [b], or the source's targets, float32 [b k], where it has
        them, "index": int64 [b], "view": int64 [b]}.

    Raises:
        ValueError: an argument is out of range; from the iterator, an image cannot be decoded.
    """
    _check(indices, batch_size, len(source))
    check_sampling(sampling)
    if min(start_step, num_workers) < 0:
        raise ValueError(f"start_step {start_step}, num_workers {num_workers}: wanted both >= 0")
    if augment is None:
        augment = Augment(views=VIEWS if views is None else views)
    elif views is not None:
        raise ValueError(f"views is {views} and augment has views {augment.views}: give one of them")
    stream = ExampleStream(indices=indices, labels=source.labels, seed=seed, sampling=sampling, views=augment.views)
    batches = (
        grain.MapDataset.range(sys.maxsize)
        .map(partial(_pick, stream=stream))
        .random_map(
            partial(_load_changed, source=source, preprocess=preprocess, augment=augment),
            seed=hashed_seed(seed, "augment"),
        )
        .map(partial(_label, labels=source.labels if source.targets is None else source.targets))
        .batch(batch_size, drop_remainder=True)[start_step:]
    ).to_iter_dataset(READ_OPTIONS)
    if num_workers:
        # Grain reads absl flags in the parent, which only absl.app would have parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=BATCHES_PER_WORKER)
        batches = batches.mp_prefetch(workers)
    return iter(batches)


def _check(indices: np.ndarray, batch_size: int, n: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, wanted at least 1")
    if not len(indices) or indices.min() < 0 or indices.max() >= n:
        got = f"from {indices.min()} to {indices.max()}" if len(indices) else "empty"
        raise ValueError(f"indices are {got}, wanted positions from 0 to {n - 1}")


# The functions mapped over the stream, at module level so that worker processes can unpickle them.


def _show(position: int, indices: np.ndarray, view: int) -> dict[str, Any]:
    return {"index": np.int64(indices[position]), "view": view}


def _pick(place: int, stream: ExampleStream) -> dict[str, Any]:
    index, view = stream[place]
    return {"index": np.int64(index), "view": np.int64(view)}


def _load_changed(
    element: dict[str, Any], generator: np.random.Generator, source: Source, preprocess: Preparation, augment: Augment
) -> dict[str, Any]:
    image = _decode(element, source)
    return element | {"image": augment_image(image, generator, augment, preprocess, view=element["view"])}


def _load(element: dict[str, Any], source: Source, preprocess: Preparation) -> dict[str, Any]:
    return element | {"image": dihedral(preprocess(_decode(element, source)), element["view"])}


def _load_views(element: dict[str, Any], source: Source, preprocess: Preprocess, bank: Bank) -> dict[str, Any]:
    return element | {"image": bank.show(_decode(element, source), int(element["index"]), preprocess)}


def _decode(element: dict[str, Any], source: Source) -> np.ndarray:
    example = source[element["index"]]
    return decode_image(example["image"], example["name"])


def _label(element: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    return element | {"label": labels[element["index"]]}


def _mark(element: dict[str, Any]) -> dict[str, Any]:
    return {"image": element["image"], "index": element["index"], "mask": np.True_}
