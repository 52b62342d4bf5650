"""Tensors of torch as views of storages, which lie in the file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tljax.weights.formats.nested import flatten
from tljax.weights.formats.weight_file import DAMAGED, WeightFile, byte_count
from tljax.weights.stored import Stored


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A run of numbers that lies elsewhere in the file.

    Args:
        key: name of it.
        dtype: of the numbers; bytes where the tensors say it.
        length: how many numbers.
        offset: of the part that is meant, in numbers.
    """

    key: str
    dtype: np.dtype
    length: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


@runtime_checkable
class Bytes(Protocol):
    """Where the numbers of a storage lie."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    def read(self, offset: int, count: int) -> np.ndarray:
        """Read a range of them."""
        ...


def read_values(
    values: Any, file: WeightFile, locate: Callable[[Storage], Bytes]
) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the tensors and plain values of an unpickled checkpoint, under keys joined with ".".

    Args:
        values: what the pickle holds.
        file: that it is from.
        locate: finds the bytes of a storage; raises ValueError where there are none.

    Raises:
        ValueError: a tensor is not inside of its storage, or a storage not in the file.
    """

    def as_stored(key: str, leaf: Any) -> Stored | None:
        if not isinstance(leaf, Tensor):
            return None
        try:
            return _stored(key, leaf, file, locate(leaf.storage))
        except ValueError as error:
            raise ValueError(f"array {key!r}: {error}") from error

    return flatten(values, ".", file, as_stored)


def _stored(key: str, tensor: Tensor, file: WeightFile, data: Bytes) -> Stored:
    """Return a tensor as the view of its storage that torch makes of it."""
    dtype, shape, held = tensor.dtype, tensor.shape, tensor.storage
    if held.length * held.dtype.itemsize != data.size:
        raise ValueError(
            f"its storage should have {held.length:,} {held.dtype}, and has {data.size:,} bytes; {DAMAGED}"
        )
    if byte_count(key, shape, dtype) > file.max_array_bytes:
        raise ValueError(f"{dtype} {shape} is more than twice the file of {file.size:,} bytes; save it as it is used")
    # One number and the way from the first to the last; nothing where an axis is empty.
    steps = [(length - 1) * stride for length, stride in zip(shape, tensor.strides, strict=True)]
    span = (sum(steps) + 1) * dtype.itemsize if math.prod(shape) else 0
    start = (tensor.offset + held.offset) * dtype.itemsize
    if start + span > data.size:
        raise ValueError(f"{dtype} {shape} at {start:,} ends after the {data.size:,} bytes of its storage; {DAMAGED}")
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides) if span else None

    def load() -> np.ndarray:
        return np.ndarray(shape, dtype, data.read(start, span).data, strides=strides)

    return Stored(shape=shape, dtype=dtype, read=load)
