"""The frozen prefix of a net as a bank of activations: computed once, trained on every epoch.

Where stages before a boundary are frozen, their output for an image never changes. Steps from stored float32
activations give the same params as steps from images, up to the rounding of batches of another size; float16 and
bfloat16 round more.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Integer

from tljax.data.augment import Augment
from tljax.data.sampling import UNIFORM, ExampleStream, check_sampling
from tljax.data.share import WHOLE, Share
from tljax.data.sources import Source
from tljax.features.extract import extract, feature_spec
from tljax.features.store import FeatureStore
from tljax.features.taps import GRID
from tljax.models.net import Net
from tljax.preprocess import Preprocess

PREFETCH_BATCHES = 4


def prefix_spec(
    net: Net,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    source: Source,
    preprocess: Preprocess,
    *,
    boundary: str | int,
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Return all that determines the bank, as plain values; see `feature_spec`."""
    return feature_spec(
        net, params, stats, source, preprocess, taps=(_stage_before(net, boundary),), pooling=GRID, views=views,
        augment=augment, seed=seed, dtype=dtype,
    )  # fmt: skip


def build_prefix(
    net: Net,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    source: Source,
    preprocess: Preprocess,
    directory: str | os.PathLike,
    *,
    boundary: str | int,
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    dtype: str = "float16",
    batch_size: int = 32,
) -> FeatureStore:
    """Store what the stage before `boundary` gives for every view of every image, as crash-safe as `extract`.

    The array's name is that stage. Other arguments are those of `extract`.

    Raises:
        ValueError: nothing is before `boundary`, or as `extract`.
    """
    return extract(
        net,
        params,
        stats,
        source,
        preprocess,
        directory,
        taps=(_stage_before(net, boundary),),
        pooling=GRID,
        views=views,
        augment=augment,
        seed=seed,
        dtype=dtype,
        batch_size=batch_size,
    )


def prefix_batches(
    store: FeatureStore,
    indices: Integer[np.ndarray, " m"],
    labels: Int32[np.ndarray, " n"],
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    views: int = 1,
    sampling: str = UNIFORM,
    targets: Float32[np.ndarray, "n k"] | None = None,
    share: Share = WHOLE,
) -> Iterator[dict[str, np.ndarray]]:
    """Read stored activations for ever, each epoch in a new order and under random views.

    The batch of a step is a function of (seed, step) alone, whatever the number of processes that share it. Epochs
    follow each other without a gap, so a batch may hold the end of one and the start of the next. Batches are read
    ahead in the background.

    Args:
        store: from `build_prefix`.
        indices: images to train on, as positions in the source.
        labels: of all images of the source.
        batch_size: images per batch, of all processes.
        seed: the run's seed.
        start_step: the step whose batch comes first.
        views: how many of the stored views to draw from; 1 for none but the image itself.
        sampling: "uniform" shows each image once an epoch; "class_balanced" each class equally often, see
            `sampling.epoch_indices`.
        targets: of all images, which the batches hold in place of the labels.
        share: the rows of each batch that this process reads; all shares of a step are the batch of one process.

    Returns:
        {"activation": [b ...] in the dtype of the store, "label": int32 [b] or float32 [b k], "index": int64 [b],
        "view": int64 [b]}, of the share.

    Raises:
        ValueError: no indices, labels of another number of images, more views than are stored, an unknown sampling, or
            a batch_size that is not one to share evenly; from the iterator, the store is incomplete.
    """
    check_sampling(sampling)
    stored_views = store.ingredients["views"]
    (name,) = store.arrays
    if not 1 <= views <= stored_views:
        raise ValueError(f"views is {views}, wanted 1 to {stored_views}, the number that {store.directory} holds")
    if len(labels) * stored_views != store.num_rows:
        raise ValueError(
            f"got {len(labels)} labels for the {store.num_rows // stored_views} images of {store.directory}"
        )
    if not len(indices):
        raise ValueError("no indices to train on; look at the split")
    shown = labels if targets is None else targets

    stream = ExampleStream(indices=indices, labels=labels, seed=seed, sampling=sampling, views=views)
    mine = np.asarray(share.rows(batch_size))

    def load(step: int) -> dict[str, np.ndarray]:
        index, view = stream.take(step * batch_size + mine)
        activation = store.rows(name, index * stored_views + view)
        return {"activation": activation, "label": shown[index], "index": index, "view": view}

    return _load_ahead(load, start_step)


def ordered_prefix_batches(
    store: FeatureStore, indices: Integer[np.ndarray, " m"], batch_size: int, *, share: Share = WHOLE
) -> Iterator[dict[str, np.ndarray]]:
    """Read the stored activations of the images as they are, view 0, once and in the order of `indices`.

    Args:
        store: from `build_prefix`.
        indices: positions in the source.
        batch_size: images per batch, of all processes.
        share: the rows of each batch that this process reads.

    Returns:
        {"activation": [b ...] in the dtype of the store, "index": int64 [b], "mask": bool [b]}, of the share. The last
        batch is filled up with the last image again, its mask False there.

    Raises:
        ValueError: from the iterator, batch_size is not one to share evenly, or the store is incomplete.
    """
    (name,) = store.arrays
    mine = np.asarray(share.rows(batch_size))
    for start in range(0, len(indices), batch_size):
        mask = start + mine < len(indices)
        index = indices[np.minimum(start + mine, len(indices) - 1)].astype(np.int64)
        activation = store.rows(name, index * store.ingredients["views"])
        yield {"activation": activation, "index": index, "mask": mask}


def _load_ahead(load: Callable[[int], dict[str, np.ndarray]], start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield `load(step)` for every step from `start_step` on, the next ones in preparation."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefix") as pool:
        first = range(start_step, start_step + PREFETCH_BATCHES)
        pending = deque(pool.submit(load, step) for step in first)
        for step in itertools.count(first.stop):
            yield pending.popleft().result()
            pending.append(pool.submit(load, step))


def _stage_before(net: Net, boundary: str | int) -> str:
    depth = net.depth(boundary)
    if depth == 0:
        raise ValueError(f"no stage is before {net.stages[0]!r}: with that boundary nothing is frozen, train on images")
    return net.stages[depth - 1]
