"""A feature store for other programs: one .npy file an array, or all arrays in one .safetensors file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from rich.progress import track

from tljax import rundir
from tljax.features.shards import row_bytes
from tljax.features.store import META, FeatureStore
from tljax.paths import did_you_mean

SAFETENSORS = "features.safetensors"
# https://huggingface.co/docs/safetensors, "Format": the dtypes that a store can have.
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def export_store(store: FeatureStore, directory: str | os.PathLike, *, format: str) -> list[Path]:
    """Write all rows of a complete store, a shard in memory at a time.

    Args:
        store: to read.
        directory: made if it is not there; `meta.json`, which says what the rows are, is copied there too.
        format: "npy", where bfloat16, which numpy has no word for, becomes float32 without loss; or "safetensors".

    Returns:
        The files with the arrays.

    Raises:
        ValueError: an unknown format, the folder holds other files, or the store is incomplete or damaged.
        OSError: the disk is full.
    """
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}{did_you_mean(format, FORMATS)}; known: {', '.join(FORMATS)}")
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is a file, or a folder that is not empty; choose another")
    directory.mkdir(parents=True, exist_ok=True)
    written = FORMATS[format](store, directory)
    rundir.write_bytes(directory / META, (store.directory / META).read_bytes())
    return written


def _write_npy(store: FeatureStore, directory: Path) -> list[Path]:
    paths = []
    for name, row in store.arrays.items():
        path = directory / f"{name}.npy"
        dtype = np.dtype(np.float32) if row.dtype == jnp.bfloat16 else row.dtype
        header = {"descr": dtype.str, "fortran_order": False, "shape": (store.num_rows, *row.shape)}
        with rundir.replacing(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            _append_rows(store, name, file, dtype)
        paths.append(path)
    return paths


def _write_safetensors(store: FeatureStore, directory: Path) -> list[Path]:
    header: dict[str, Any] = {}
    start = 0
    for name, row in store.arrays.items():
        end = start + store.num_rows * row_bytes(row)
        shape = [store.num_rows, *row.shape]
        header[name] = {"dtype": _DTYPES[row.dtype.name], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    # The format aligns what follows the header to 8 bytes.
    text += b" " * (-len(text) % 8)
    path = directory / SAFETENSORS
    with rundir.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, row in store.arrays.items():
            _append_rows(store, name, file, row.dtype)
    return [path]


def _append_rows(store: FeatureStore, name: str, file: IO[bytes], dtype: np.dtype) -> None:
    for rows in track(store.shards(name), f"writing {name}", total=store.num_shards, transient=True):
        file.write(np.ascontiguousarray(rows.astype(dtype, copy=False)).tobytes())


FORMATS: dict[str, Callable[[FeatureStore, Path], list[Path]]] = {"npy": _write_npy, "safetensors": _write_safetensors}
