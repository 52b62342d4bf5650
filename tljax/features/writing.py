"""Make a feature store, or go on with one: one writer at a time, whole batches in a shard."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from tljax import plain, processes, rundir
from tljax.features.shards import row_bytes
from tljax.features.store import META, FeatureStore, open_store

LOCK = "writer.lock"
# A killed writer loses the shard it is at, so a shard has no more than this many batches; and no more than this
# many bytes in a file, unless one batch has.
BATCHES_PER_SHARD = 16
SHARD_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_for_writing(
    directory: str | os.PathLike,
    ingredients: Mapping[str, Any],
    *,
    num_rows: int,
    rows_per_batch: int,
    arrays: Mapping[str, jax.ShapeDtypeStruct],
) -> Iterator[FeatureStore]:
    """Make a store, or open one to go on with; other writers wait until the context is left.

    The processes of one run write it together, into one folder that all of them see: they must all enter the context,
    and all leave it. That each of them writes shards of its own is for them to see to.

    Args:
        directory: made if it is not there.
        ingredients: plain values that determine the rows.
        num_rows: of every array.
        rows_per_batch: rows that the writer computes together; shards hold whole batches, so that a writer that
            goes on computes the same batches and gets the same bits.
        arrays: shape and dtype of one row of each array.

    Raises:
        ValueError: the store was made from something else, or begun with other batches.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_only_writer(directory))
            for stray in directory.glob(".*.tmp"):
                log.info("removing %s, left by a killed process", stray)
                stray.unlink()
            if not (directory / META).exists():
                _write_meta(directory, ingredients, num_rows, rows_per_batch, arrays)

        processes.on_first(prepare)
        store = open_store(directory, ingredients)
        if store.rows_per_batch != rows_per_batch and not store.is_complete:
            raise ValueError(
                f"feature store {directory} was begun with {store.rows_per_batch} rows a batch, got {rows_per_batch}, "
                "which may change last bits; finish it with the first batch size, or remove it"
            )
        yield store
        # The lock is that of the first process.
        processes.wait_for_all(f"{directory} is written")


def _write_meta(
    directory: Path,
    ingredients: Mapping[str, Any],
    num_rows: int,
    rows_per_batch: int,
    arrays: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    if any(directory.glob("*.npy")):
        raise ValueError(f"{directory} holds arrays of an unknown origin, as it has no {META}; use another folder")
    largest = max(row_bytes(row) for row in arrays.values())
    num_batches = min(BATCHES_PER_SHARD, max(1, SHARD_BYTES // (largest * rows_per_batch)))
    meta = {
        "ingredients": dict(ingredients),
        "fingerprint": plain.fingerprint(ingredients),
        "num_rows": num_rows,
        "rows_per_batch": rows_per_batch,
        "rows_per_shard": num_batches * rows_per_batch,
        "arrays": {name: {"shape": row.shape, "dtype": row.dtype.name} for name, row in arrays.items()},
    }
    rundir.write_json(directory / META, meta)


@contextlib.contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, however it ends."""
    with open(directory / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that writes %s", directory)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
