"""HDF5 files, as Keras writes them; needs the package h5py."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.weights.formats.weight_file import DAMAGED, WeightFile, byte_count
from tljax.weights.stored import Stored

# Where Keras keeps the weights when it saves a model; beside them is the state of the optimiser.
_MODEL_WEIGHTS = "model_weights"
_FLOATS = ("float16", "float32", "float64")
# What h5py raises for damaged files.
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """What the header of an array says; its place in the file is the library's business."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    held_bytes: int
    is_packed: bool
    is_elsewhere: bool


def read(file: WeightFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the arrays of floating-point numbers, under the names of their groups joined with "/".

    Of a model that Keras saved, these are the arrays below "model_weights".

    Raises:
        ImportError: the package h5py is not installed.
        ValueError: the file is damaged, an array is in another file, or it is larger than twice the file.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(f"{file.path} is HDF5, which needs the package h5py: pip install 'tljax[keras]'") from error
    found: list[_Dataset] = []

    def note(name: Any, item: Any) -> None:
        if not isinstance(name, str):
            raise ValueError(f"it has a name {name!r} that is no text")
        if isinstance(item, h5py.Dataset) and item.dtype.name in _FLOATS:
            found.append(_described(name, item))

    with _opened(file, h5py) as root:
        is_model = isinstance(root.get(_MODEL_WEIGHTS), h5py.Group)
        (root[_MODEL_WEIGHTS] if is_model else root).visititems(note)
    prefix = f"{_MODEL_WEIGHTS}/" if is_model else ""
    return {item.name: _stored(file, h5py, prefix, item) for item in found}, {}


@contextmanager
def _opened(file: WeightFile, h5py: Any) -> Iterator[Any]:
    file.open().close()
    try:
        with h5py.File(file.path, "r", locking=False) as root:
            yield root
    except _ERRORS as error:
        raise ValueError(f"{str(error)[:500]}; {DAMAGED}") from error


def _described(name: str, item: Any) -> _Dataset:
    return _Dataset(
        name=name,
        shape=tuple(int(length) for length in item.shape or ()),
        dtype=np.dtype(item.dtype.name),
        held_bytes=int(item.id.get_storage_size()),
        is_packed=item.chunks is not None,
        is_elsewhere=bool(item.is_virtual or item.external),
    )


def _stored(file: WeightFile, h5py: Any, prefix: str, item: _Dataset) -> Stored:
    count = byte_count(item.name, item.shape, item.dtype)
    if item.is_elsewhere:
        raise ValueError(f"array {item.name!r} is in another file; save the model again in one")
    if count > file.max_array_bytes:
        raise ValueError(f"array {item.name!r} {item.shape} is larger than twice the file; {DAMAGED}")
    # Nothing is held of an array that was never written, and reads as zeros.
    if not item.is_packed and item.held_bytes not in (0, count):
        raise ValueError(
            f"array {item.name!r}: {item.dtype} {item.shape} takes {count:,} bytes, "
            f"it has {item.held_bytes:,}; {DAMAGED}"
        )

    def load() -> np.ndarray:
        with _opened(file, h5py) as root:
            array = root[prefix + item.name][()]
        return np.asarray(array, item.dtype)

    return Stored(shape=item.shape, dtype=item.dtype, read=load)
