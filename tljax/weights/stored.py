"""Arrays that are still in their file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One array of a file, known by its header; its bytes are read when asked for.

    Args:
        shape: of the array.
        dtype: numpy's, or one of ml_dtypes such as bfloat16.
        read: returns the array; it may be a view of the file, so copy what must outlive it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of weights, or a set of shards, holds.

    Args:
        path: the file, or the index of the shards.
        format: "safetensors", "torch", "msgpack", "npz", "onnx" or "hdf5".
        arrays: key to array. Keys of nested dicts are joined as the format's own projects join them: with "." in
            torch files, with "/" in the others.
        settings: what else the file says of itself, as plain values.
    """

    path: Path
    format: str
    arrays: Mapping[str, Stored]
    settings: Mapping[str, Any]


def stored(array: np.ndarray) -> Stored:
    """Wrap an array that is in memory already."""
    return Stored(shape=tuple(array.shape), dtype=array.dtype, read=lambda: array)
