"""Features of a source of images: one pass through the net, kept at one or several stages."""

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from tljax import plain, processes, rundir
from tljax.data.augment import Augment
from tljax.data.bank import Bank
from tljax.data.pipeline import bank_batches
from tljax.data.sources import Source
from tljax.devices import MESH_AXES, make_mesh
from tljax.environment import environment
from tljax.features.store import META, FeatureStore, open_store
from tljax.features.taps import Pooling, describe_pooling, make_taps, of_stages, run_to_taps, running_stages
from tljax.features.writing import open_for_writing
from tljax.models.net import Arrays, Net
from tljax.paths import did_you_mean
from tljax.preprocess import Preprocess

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
    pooling: Pooling = "cls_mean",
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Return all that determines the features, as plain values; computes none.

    `plain.fingerprint` of it names a folder that only these features can be in, up to the rounding of another release
    of JAX. Class count and params of stages that do not run are not in it. Takes what `extract` takes.

    Raises:
        ValueError: an unknown dtype, or as `make_taps` and `Bank`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"features cannot be kept as {dtype!r}{did_you_mean(dtype, DTYPES)}; known: {DTYPES}")
    chosen = make_taps(net, taps, pooling)
    bank = Bank(views=views, augment=augment, seed=seed)
    running = running_stages(net, chosen)
    architecture, settings = cast(Any, net.architecture), cast(Any, jax.config)
    return {
        "net": {name: value for name, value in dataclasses.asdict(architecture).items() if name != "num_classes"},
        "params": plain.fingerprint(of_stages(params, running)),
        "stats": plain.fingerprint(of_stages(stats, running)),
        "preprocess": preprocess.describe(),
        "data": source.fingerprint,
        "taps": list(taps),
        "pooling": describe_pooling(chosen),
        **bank.describe(),
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
    pooling: Pooling = "cls_mean",
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
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
        pooling: a kind of `Net.pool`, after the net's final norm if it has one; or "grid", the whole output as the
            next stage takes it. Several kinds, or {stage: kinds}, make arrays named "STAGE.KIND" of one pass.
        views: of each image; view v of image i is row i * views + v, and view 0 the image as it is. All views of a
            batch are in memory together.
        augment: how the other views are changed, see `Bank`; None for flips and quarter turns.
        seed: of what is drawn for `augment`.
        dtype: to store, "float16", "bfloat16" or "float32".
        batch_size: images that one device computes together; the devices of this machine work side by side, and their
            number changes no bit.

    Raises:
        ValueError: as `feature_spec`; a store of something else is in the folder; a feature is not finite or too
            large for `dtype`; an image cannot be decoded.
        OSError: the disk is full; call again to go on.
    """
    spec = feature_spec(
        net, params, stats, source, preprocess, taps=taps, pooling=pooling, views=views, augment=augment, seed=seed,
        dtype=dtype,
    )  # fmt: skip
    directory = Path(directory)
    if (directory / META).exists():
        store = open_store(directory, spec)
        if store.is_complete:
            log.info("reusing %d rows of %s in %s", store.num_rows, ", ".join(store.arrays), directory)
            return store
    chosen = make_taps(net, taps, pooling)
    running = running_stages(net, chosen)
    # Devices without an image would compute all the same.
    mesh = make_mesh(jax.local_devices()[: max(1, math.ceil(len(source) / batch_size))])
    # To the devices once, not with every batch.
    everywhere = NamedSharding(mesh, P())
    params, stats = jax.device_put((of_stages(params, running), of_stages(stats, running)), everywhere)
    run = functools.partial(run_to_taps, net, preprocess, chosen, mesh, params, stats)
    spread = NamedSharding(mesh, P(MESH_AXES))
    images = jax.ShapeDtypeStruct((batch_size * mesh.size, *preprocess.shape), jnp.uint8, sharding=spread)
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
        _fill(store, source, preprocess, run, Bank(views=views, augment=augment, seed=seed), mesh)
    if processes.are_several():
        store.look_again()
    return store


def _fill(
    store: FeatureStore, source: Source, preprocess: Preprocess, run: Callable[[jax.Array], Arrays], bank: Bank,
    mesh: Mesh,
) -> None:  # fmt: skip
    """Make the missing shards of a store."""
    missing = processes.on_first(store.missing_shards)
    log.info("making %d of %d shards in %s", len(missing), store.num_shards, store.directory)
    if processes.is_first() and missing:
        rundir.write_json(store.directory / "env.json", environment())
    # Each process makes shards of its own.
    missing = missing[jax.process_index() :: jax.process_count()]
    if not missing:
        return
    shard_of_image = np.arange(len(source)) * bank.views // store.rows_per_shard
    indices = np.flatnonzero(np.isin(shard_of_image, missing))
    size = store.rows_per_batch // bank.views
    batches = bank_batches(source, indices, preprocess, size * mesh.size, bank)
    # The share of a device does not cross shards: only the last shard can end inside of one.
    parts = _compute_ahead(batches, run, size, mesh)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=not processes.is_first()) as progress:
        bar = progress.add_task(f"features of {source.name}", total=len(indices))
        for shard in missing:
            num_parts = math.ceil(store.shard_rows(shard) / store.rows_per_batch)
            shard_parts = []
            for count, part in islice(parts, num_parts):
                shard_parts.append(part)
                progress.advance(bar, count)
            store.write(shard, {name: np.concatenate([part[name] for part in shard_parts]) for name in store.arrays})
    seconds = time.monotonic() - started
    log.info("%d images in %.1f s, %.1f images/s, compilation included", len(indices), seconds, len(indices) / seconds)


def _compute_ahead(
    batches: Iterable[Mapping[str, np.ndarray]], run: Callable[[jax.Array], Arrays], size: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (images, their rows) of each device's share; while the caller has those, the devices make the next."""
    spread = NamedSharding(mesh, P(MESH_AXES))
    pending = None
    for batch in batches:
        views = np.moveaxis(batch["image"], 1, 0)  # b views h w c -> views b h w c
        outputs = [run(jax.device_put(view, spread)) for view in views]
        if pending is not None:
            yield from _collect(*pending, size)
        pending = int(batch["mask"].sum()), outputs
    if pending is not None:
        yield from _collect(*pending, size)


def _collect(count: int, outputs: Sequence[Arrays], size: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Bring the outputs of all views to the host, and cut them into shares, without the padding of the batch."""
    fetched = jax.device_get(outputs)
    for first in range(0, count, size):
        chosen = slice(first, min(first + size, count))
        rows = {}
        for name in fetched[0]:
            shown = np.stack([output[name][chosen] for output in fetched], axis=1)
            rows[name] = shown.reshape(-1, *shown.shape[2:])  # b views ... -> (b views) ...
        yield chosen.stop - chosen.start, rows


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} images/s")
