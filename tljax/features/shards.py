"""The files of a feature store: rows as .npy, written from memory and read through memory maps."""

import io
import math
import mmap
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Num

CHECKED_BYTES = 2**20
# Every mapped file stays open, and a process may have 1,024 of them.
OPEN_FILES = 256


def row_bytes(row: jax.ShapeDtypeStruct) -> int:
    """Return the size of one row."""
    return math.prod(row.shape) * row.dtype.itemsize


def encode(values: Num[np.ndarray, "n ..."], dtype: np.dtype, name: str) -> bytes:
    """Return the content of the .npy file of `values` in another dtype.

    Args:
        values: as computed.
        dtype: to store.
        name: for the error.

    Raises:
        ValueError: a value is not finite, or not in the range of `dtype`.
    """
    # The check below says more than the warning would.
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype)
    if not np.isfinite(stored).all():
        broken = np.count_nonzero(~np.isfinite(values))
        if broken:
            raise ValueError(f"{broken} of {values.size} values of {name} are not finite; look at params and images")
        raise ValueError(
            f"values of {name} reach {np.abs(values).max():.3g}, beyond {dtype}; extract with dtype='float32'"
        )
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(stored), allow_pickle=False)
    return content.getvalue()


def checksum(path: str | os.PathLike) -> int:
    """Return the CRC-32 of a file, holding a part of it at a time."""
    value = 0
    with open(path, "rb", buffering=0) as file:
        while part := file.read(CHECKED_BYTES):
            value = zlib.crc32(part, value)
    return value


class MappedRows:
    """Rows of one .npy file, read from disk when they are used.

    Opened with shape and dtype from outside: a .npy header has no word for bfloat16, which `np.load`
    would return as void. A class because the map and the array that looks into it belong together.

    Args:
        path: of a file that `encode` made.
        row: shape and dtype of one row.
        num_rows: in the file.
    """

    def __init__(self, path: str | os.PathLike, row: jax.ShapeDtypeStruct, num_rows: int):
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._row_bytes = row_bytes(row)
        self._header_bytes = len(self._memory) - num_rows * self._row_bytes
        values = np.frombuffer(self._memory, row.dtype, offset=self._header_bytes)
        self.values = values.reshape(num_rows, *row.shape)

    def forget(self) -> None:
        """Give the pages that have been read back to the system, which may keep them for the next who asks."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def read_ahead(self, index: int) -> None:
        """Ask the system to begin reading a row, without waiting for it."""
        start = self._header_bytes + index * self._row_bytes
        page = start - start % mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_WILLNEED, page, start + self._row_bytes - page)


class MappedFiles:
    """Files of rows that are mapped, the ones used last; each is compared with its checksum when it is first opened.

    A class because training reads ahead in one thread while another evaluates.
    """

    def __init__(self) -> None:
        self._mapped: OrderedDict[Path, MappedRows] = OrderedDict()
        self._checked: set[Path] = set()
        self._lock = threading.Lock()

    def open(self, path: Path, row: jax.ShapeDtypeStruct, num_rows: int, recorded: Callable[[], int]) -> MappedRows:
        """Return the rows of a file.

        Args:
            path: of the file.
            row: shape and dtype of one row.
            num_rows: in the file.
            recorded: returns the checksum that was written beside it.

        Raises:
            ValueError: the file is not what was written.
        """
        with self._lock:
            if path not in self._checked:
                # Reads the file in order, which is faster than its rows would come one by one.
                _compare(path, recorded())
                self._checked.add(path)
            if path not in self._mapped:
                self._mapped[path] = MappedRows(path, row, num_rows)
            self._mapped.move_to_end(path)
            if len(self._mapped) > OPEN_FILES:
                self._mapped.popitem(last=False)
            return self._mapped[path]

    def replaced(self, path: Path) -> None:
        """Take note that a file has just been written: what is mapped is the one before."""
        with self._lock:
            self._mapped.pop(path, None)
            self._checked.add(path)


def _compare(path: Path, recorded: int) -> None:
    found = checksum(path)
    if found != recorded:
        raise ValueError(
            f"{path} is damaged: its checksum is {found:#010x}, wanted {recorded:#010x}; delete this file and extract "
            "again, which makes this shard only"
        )
