"""The files of a feature store: rows as .npy, written from memory and read through memory maps."""

import io
import math
import mmap
import os

import jax
import numpy as np
from jaxtyping import Num


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

    def read_ahead(self, index: int) -> None:
        """Ask the system to begin reading a row, without waiting for it."""
        start = self._header_bytes + index * self._row_bytes
        page = start - start % mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_WILLNEED, page, start + self._row_bytes - page)
