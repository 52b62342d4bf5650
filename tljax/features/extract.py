"""Features of a source of images: one pass through the net, kept at one or several stages."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from tljax import plain, rundir
from tljax.data.augment import VIEWS, dihedral
from tljax.data.pipeline import ordered_batches
from tljax.data.sources import Source
from tljax.features.store import META, FeatureStore, open_store
from tljax.features.writing import open_for_writing
from tljax.models.net import HEAD, NORM, Arrays, Net
from tljax.paths import did_you_mean, stage_of
from tljax.preprocess import Preprocess

GRID = "grid"
DTYPES = ("float16", "bfloat16", "float32")
# Raised when the rows of a store would differ though nothing that a caller gives does.
FORMAT = 1

log = logging.getLogger(__name__)


def feature_spec(
    net: Net,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    source: Source,
    preprocess: Preprocess,
    *,
    taps: Sequence[str],
    pooling: str = "cls_mean",
    views: int = 1,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Return all that determines the features, as plain values; computes none.

    `plain.fingerprint` of it names a folder that only these features can be in, up to the rounding of another release
    of JAX. Class count and params of stages that do not run are not in it. Takes what `extract` takes.

    Raises:
        ValueError: unknown stages, stages out of order or behind the last features, an unknown dtype, or a
            number of views outside of 1..8.
    """
    if dtype not in DTYPES:
        raise ValueError(f"features cannot be kept as {dtype!r}{did_you_mean(dtype, DTYPES)}; known: {DTYPES}")
    if not 1 <= views <= VIEWS:
        raise ValueError(f"views is {views}, wanted 1 to {VIEWS}")
    running = _running_stages(net, taps, pooling)
    architecture, settings = cast(Any, net.architecture), cast(Any, jax.config)
    return {
        "net": {name: value for name, value in dataclasses.asdict(architecture).items() if name != "num_classes"},
        "params": plain.fingerprint(_of_stages(params, running)),
        "stats": plain.fingerprint(_of_stages(stats, running)),
        "preprocess": preprocess.describe(),
        "data": source.fingerprint,
        "taps": list(taps),
        "pooling": pooling,
        "views": views,
        "dtype": dtype,
        # A CPU multiplies float32 in full, accelerators by default with fewer bits.
        "platform": jax.default_backend(),
        "matmul_precision": str(settings.jax_default_matmul_precision),
        "format": FORMAT,
    }


def extract(
    net: Net,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    source: Source,
    preprocess: Preprocess,
    directory: str | os.PathLike,
    *,
    taps: Sequence[str],
    pooling: str = "cls_mean",
    views: int = 1,
    dtype: str = "float16",
    batch_size: int = 32,
) -> FeatureStore:
    """Compute the features that are not in the store yet, and return the complete store.

    A store that is complete costs neither an image read nor a compilation; one left by a killed process is
    finished, to the same bits as without the kill.

    Args:
        net: to run in inference mode.
        params: at least those of the stages that run.
        stats: the same.
        source: all its images are used, in order.
        preprocess: what the params want done to an image.
        directory: of the store; made if it is not there.
        taps: stages, by depth, whose outputs to keep, each as an array of that name; those of "head" are the scores
            of its classes, and are not pooled.
        pooling: "cls", "mean" or "cls_mean" of `Net.pool`, after the net's final norm if it has one; or "grid",
            the whole output as the next stage takes it.
        views: number of dihedral views of each image; view v of image i is row i * views + v.
        dtype: to store, "float16", "bfloat16" or "float32".
        batch_size: images computed together.

    Raises:
        ValueError: as `feature_spec`; a store of something else is in the folder; a feature is not finite or too
            large for `dtype`; an image cannot be decoded.
        OSError: the disk is full; call again to go on.
    """
    spec = feature_spec(net, params, stats, source, preprocess, taps=taps, pooling=pooling, views=views, dtype=dtype)
    directory = Path(directory)
    if (directory / META).exists():
        store = open_store(directory, spec)
        if store.is_complete:
            log.info("reusing %d rows of %s in %s", store.num_rows, ", ".join(taps), directory)
            return store
    running = _running_stages(net, taps, pooling)
    # To the device once, not with every batch.
    params, stats = jax.device_put((_of_stages(params, running), _of_stages(stats, running)))
    run = functools.partial(_run, net, preprocess, tuple(taps), pooling, params, stats)
    images = jax.ShapeDtypeStruct((batch_size, *preprocess.shape), jnp.uint8)
    arrays = {
        name: jax.ShapeDtypeStruct(y.shape[1:], jnp.dtype(dtype)) for name, y in jax.eval_shape(run, images).items()
    }
    with open_for_writing(
        directory,
        spec,
        num_rows=len(source) * views,
        rows_per_batch=batch_size * views,
        arrays=arrays,
    ) as store:
        _fill(store, source, preprocess, run, views)
    return store


def _running_stages(net: Net, taps: Sequence[str], pooling: str) -> tuple[str, ...]:
    """Return the stages that the features depend on."""
    depths = [net.depth(tap) for tap in taps]
    if not depths or depths != sorted(set(depths)):
        raise ValueError(f"taps are {list(taps)}, wanted one or more stages in order of depth, each once")
    has_norm = pooling != GRID and NORM in net.stages
    end = net.depth(NORM) if has_norm else len(net.stages) - 1
    has_scores = taps[-1] == HEAD and net.num_classes > 0 and pooling != GRID
    pooled = depths[:-1] if has_scores else depths
    if pooled and pooled[-1] >= end:
        stage, last = net.stages[pooled[-1]], net.stages[end - 1]
        raise ValueError(f"no features with pooling {pooling!r} after stage {stage!r}; the last tap can be {last!r}")
    if has_scores:
        return net.stages
    return net.stages[: depths[-1] + 1] + ((NORM,) if has_norm else ())


def _of_stages(values: Mapping[str, Any], stages: Sequence[str]) -> Arrays:
    return {path: value for path, value in values.items() if stage_of(path) in stages}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    net: Net,
    preprocess: Preprocess,
    taps: tuple[str, ...],
    pooling: str,
    params: Arrays,
    stats: Arrays,
    images: jax.Array,
) -> Arrays:
    """Run each stage once and return the features at each tap."""
    features = {}
    y = preprocess.normalise(images)
    start = 0
    for tap in taps:
        stop = net.depth(tap) + 1
        y, _ = net.apply(params, stats, y, start=start, stop=stop)
        start = stop
        features[tap] = y if pooling == GRID or tap == HEAD else net.pool(_norm(net, params, stats, y), pooling)
    return features


def _norm(net: Net, params: Arrays, stats: Arrays, y: jax.Array) -> jax.Array:
    # Blocks of a ViT are all as wide as its norm; of a network of feature maps, the last ones only.
    if NORM not in net.stages or net.shapes[f"{NORM}/scale"].shape != y.shape[-1:]:
        return y
    return net.apply(params, stats, y, start=NORM, stop=net.depth(NORM) + 1)[0]


def _fill(
    store: FeatureStore, source: Source, preprocess: Preprocess, run: Callable[[np.ndarray], Arrays], views: int
) -> None:
    """Make the missing shards of a store."""
    missing = store.missing_shards()
    log.info("making %d of %d shards in %s", len(missing), store.num_shards, store.directory)
    if not missing:
        return
    rundir.write_json(store.directory / "env.json", rundir.environment())
    shard_of_image = np.arange(len(source)) * views // store.rows_per_shard
    indices = np.flatnonzero(np.isin(shard_of_image, missing))
    batches = ordered_batches(source, indices, preprocess, store.rows_per_batch // views)
    # Batches do not cross shards: only the last shard can end inside of a batch.
    parts = _compute_ahead(batches, run, views)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"features of {source.name}", total=len(indices))
        for shard in missing:
            num_batches = math.ceil(store.shard_rows(shard) / store.rows_per_batch)
            shard_parts = []
            for count, part in islice(parts, num_batches):
                shard_parts.append(part)
                progress.advance(bar, count)
            store.write(shard, {name: np.concatenate([part[name] for part in shard_parts]) for name in store.arrays})


def _compute_ahead(
    batches: Iterable[Mapping[str, np.ndarray]], run: Callable[[np.ndarray], Arrays], views: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (images, their rows) of each batch; while the caller has those of one, the device makes the next."""
    pending = None
    for batch in batches:
        outputs = [run(_show(batch["image"], view)) for view in range(views)]
        if pending is not None:
            yield _collect(*pending)
        pending = int(batch["mask"].sum()), outputs
    if pending is not None:
        yield _collect(*pending)


def _collect(count: int, outputs: Sequence[Arrays]) -> tuple[int, dict[str, np.ndarray]]:
    """Bring the outputs of all views to the host, without the padding of the batch."""
    fetched = jax.device_get(outputs)
    rows = {}
    for name in fetched[0]:
        shown = np.stack([output[name][:count] for output in fetched], axis=1)
        rows[name] = shown.reshape(-1, *shown.shape[2:])  # b views ... -> (b views) ...
    return count, rows


def _show(images: np.ndarray, view: int) -> np.ndarray:
    # Here and not by the pipeline, so that an image is decoded once for all views.
    return np.stack([dihedral(image, view) for image in images]) if view else images


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} images/s")
