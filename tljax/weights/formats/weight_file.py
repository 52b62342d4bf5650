"""A file of weights as byte ranges, none of which is read before it is asked for."""

import math
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.weights.stored import Stored

DAMAGED = "the file is damaged or cut short; download it again"

# By the names that numpy, flax and torch share.
DTYPES = {
    **{name: np.dtype(name) for name in ("bool", "float16", "float32", "float64", "complex64", "complex128")},
    **{f"{kind}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}

# numpy's.
_MAX_AXES = 64
# Objects that describe arrays are allowed to the size of the file, and so many more for small files.
_FREE_ITEMS = 50_000
_BYTES_PER_ITEM = 128
_FREE_BYTES = 1 << 20
# From where glibc begins to do the same, until it has freed something larger.
_MIN_MAPPED_BYTES = 1 << 17


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file as it was when it was opened.

    Ranges are read into memory of their own. A map of the file would keep what was read in resident memory, and a file
    that is cut short while it is mapped kills the process.

    Args:
        path: of the file.
        size: in bytes.
        identity: what tells that the file is still the same.
    """

    path: Path
    size: int
    identity: tuple[int, int, int]

    @property
    def max_array_bytes(self) -> int:
        """Return how large one array may be, however well it is packed: twice the file, or 1 MiB in small files."""
        return 2 * self.size + _FREE_BYTES

    @property
    def max_items(self) -> int:
        """Return how many objects may describe the arrays: more would take more memory than the file."""
        return _FREE_ITEMS + self.size // _BYTES_PER_ITEM

    def open(self) -> BufferedReader:
        """Open the file.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it has been written since.
        """
        file = open(self.path, "rb")  # noqa: SIM115, the caller closes it
        if _identity(os.fstat(file.fileno())) == self.identity:
            return file
        file.close()
        raise ValueError("the file has changed since it was opened; load it again")

    def read(self, offset: int, count: int) -> np.ndarray:
        """Read a range of bytes.

        Raises:
            ValueError: the file does not hold it, or has changed.
        """
        check_range(offset, count, self.size)
        buffer = new_bytes(count)
        left = buffer.data
        with self.open() as file:
            file.seek(offset)
            while left and (got := file.readinto(left)):
                left = left[got:]
        if left:
            raise ValueError(f"{len(left):,} of {count:,} bytes could not be read; {DAMAGED}")
        return buffer

    def stored(self, key: str, offset: int, shape: Sequence[Any], dtype: np.dtype) -> Stored:
        """Return the array that lies at `offset`, in C order.

        Raises:
            ValueError: there is no such shape, or the file does not hold so much.
        """
        count = byte_count(key, shape, dtype)
        try:
            check_range(offset, count, self.size)
        except ValueError as error:
            raise ValueError(f"array {key!r}: {error}") from error
        shape = tuple(shape)
        return Stored(shape=shape, dtype=dtype, read=lambda: self.read(offset, count).view(dtype).reshape(shape))


def open_file(path: Path) -> WeightFile:
    """Look at a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, such as a device, or it is empty.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file")
    if not status.st_size:
        raise ValueError(f"{path} is empty; download it again")
    return WeightFile(path=path, size=status.st_size, identity=_identity(status))


def new_bytes(count: int) -> np.ndarray:
    """Return memory for an array, which goes back to the system as soon as nothing refers to it.

    Freed memory of the C library can stay with the process: of a ViT-L it kept a fifth.
    """
    if count < _MIN_MAPPED_BYTES:
        return np.empty(count, np.uint8)
    return np.frombuffer(mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_range(offset: int, count: int, size: int) -> None:
    """Refuse a range that is not inside of `size` bytes.

    Raises:
        ValueError: it is not.
    """
    if offset < 0 or count < 0 or offset + count > size:
        raise ValueError(f"it should go on to byte {offset + count:,}, and ends at {size:,}; {DAMAGED}")


def byte_count(key: str, shape: Sequence[Any], dtype: np.dtype) -> int:
    """Return how many bytes an array takes.

    Raises:
        ValueError: the shape is none, or no array can be so large.
    """
    if len(shape) > _MAX_AXES:
        raise ValueError(f"array {key!r} has {len(shape)} axes, at most {_MAX_AXES} are possible; {DAMAGED}")
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ValueError(f"array {key!r} has lengths of axes that are no sizes; {DAMAGED}")
    # Zeros do not make the others possible.
    if math.prod(max(length, 1) for length in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"array {key!r} has the impossible shape {tuple(shape)}; {DAMAGED}")
    return math.prod(shape) * dtype.itemsize
