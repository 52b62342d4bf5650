"""Batches of decoded images: in order for extraction, as an endless random stream for training."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from tljax.data.augment import VIEWS, dihedral
from tljax.data.decode import decode_image
from tljax.data.sources import Source
from tljax.data.splits import hashed_seed

Preparation = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "side side 3"]]

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
        preprocess: picklable; turns one decoded image into a square of a fixed size.
        batch_size: images per batch; the last batch is filled up with zeros.
        view: the one of `augment.dihedral` to show.

    Returns:
        {"image": uint8 [b side side 3], "index": int64 [b], "mask": bool [b], False where filled up}.

    Raises:
        ValueError: indices or batch_size are out of range; from the iterator, an image cannot be decoded.
    """
    _check(indices, batch_size, len(source))
    images = (
        grain.MapDataset.range(len(indices))
        .map(partial(_show, indices=indices, view=view))
        .map(partial(_load, source=source, preprocess=preprocess))
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
    views: int = VIEWS,
) -> Iterator[dict[str, np.ndarray]]:
    """Read the images at `indices` for ever, each epoch in a new order and under random views.

    The batch of a step is a function of (seed, step) alone, whatever the start step and the number of
    workers. Epochs follow each other without a gap, so a batch may hold the end of one and the start of
    the next.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: picklable; turns one decoded image into a square of a fixed size.
        batch_size: images per batch.
        seed: the run's seed.
        start_step: the step whose batch comes first.
        num_workers: processes that decode; 0 decodes in threads of this one. They are spawned, so a script
            needs its `if __name__ == "__main__":`.
        views: how many of the views of `augment.dihedral` to draw from: 1 for none but the image itself, 2
            for mirror images, 4 for half turns as well, 8 for all.

    Returns:
        {"image": uint8 [b side side 3], "label": int32 [b], "index": int64 [b], "view": int64 [b]}.

    Raises:
        ValueError: an argument is out of range; from the iterator, an image cannot be decoded.
    """
    _check(indices, batch_size, len(source))
    if not 1 <= views <= VIEWS or min(start_step, num_workers) < 0:
        raise ValueError(
            f"views {views}, start_step {start_step}, num_workers {num_workers}: wanted views from 1 to {VIEWS} "
            "and the others >= 0"
        )
    batches = (
        grain.MapDataset.range(len(indices))
        .shuffle(seed=hashed_seed(seed, "shuffle"))
        .random_map(partial(_draw_view, indices=indices, views=views), seed=hashed_seed(seed, "view"))
        .map(partial(_load, source=source, preprocess=preprocess))
        .map(partial(_label, labels=source.labels))
        .repeat()
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


def _draw_view(position: int, generator: np.random.Generator, indices: np.ndarray, views: int) -> dict[str, Any]:
    return {"index": np.int64(indices[position]), "view": generator.integers(views)}


def _load(element: dict[str, Any], source: Source, preprocess: Preparation) -> dict[str, Any]:
    example = source[element["index"]]
    image = preprocess(decode_image(example["image"], example["name"]))
    return element | {"image": dihedral(image, element["view"])}


def _label(element: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    return element | {"label": labels[element["index"]]}


def _mark(element: dict[str, Any]) -> dict[str, Any]:
    return {"image": element["image"], "index": element["index"], "mask": np.True_}
