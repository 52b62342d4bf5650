"""The two files of an image cache, as one process has them open."""

import contextlib
import fcntl
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

# Offset, height, width, channels, checksum of the pixels, checksum of the record.
RECORD = struct.Struct("<QIIIII")
# The file of pixels grows by this, sparse, so that it is seldom mapped anew.
GROWTH_BYTES = 2**28

_INDEX = "index.bin"
_PIXELS = "pixels.bin"
_HEADER_BYTES = 4096
# Bytes in use, and whether the disk was full.
_HEADER = struct.Struct("<QQ")


class CacheFiles:
    """The open files of one process.

    Attributes:
        index: descriptor of the file of records.
        pixels: of that of pixels.
        checked: for each image, whether its pixels have been compared with their checksum.
        is_closed: no more is written.
    """

    def __init__(self, directory: Path, num_images: int):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.index = os.open(directory / _INDEX, flags, 0o644)
        self.pixels = os.open(directory / _PIXELS, flags, 0o644)
        self.checked = bytearray(num_images)
        self.is_closed = False
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        with self.locked():
            if os.fstat(self.index).st_size < record_place(num_images):
                os.ftruncate(self.index, record_place(num_images))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out other threads and processes; a process that ends lets go."""
        with self._lock:
            fcntl.flock(self.index, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self.index, fcntl.LOCK_UN)

    def read_header(self) -> tuple[int, bool]:
        """Return the bytes in use, and whether the disk was full."""
        used, is_full = _HEADER.unpack(os.pread(self.index, _HEADER.size, 0))
        return used, bool(is_full)

    def write_header(self, used: int, *, is_full: bool) -> None:
        """Write what `read_header` returns."""
        write_whole(self.index, _HEADER.pack(used, is_full), 0)

    def grow(self, size: int) -> None:
        """Make the file of pixels at least so long; what is not written takes no room."""
        if os.fstat(self.pixels).st_size < size:
            os.ftruncate(self.pixels, math.ceil(size / GROWTH_BYTES) * GROWTH_BYTES)

    def mapped(self, size: int) -> mmap.mmap | None:
        """Return the file of pixels in memory, which all processes share; None where it is shorter than that."""
        known = self._map
        if known is not None and len(known) >= size:
            return known
        if os.fstat(self.pixels).st_size < size:
            return None
        # Whoever still looks into the one before keeps it.
        self._map = mmap.mmap(self.pixels, 0, access=mmap.ACCESS_READ)
        return self._map

    def __del__(self) -> None:
        os.close(self.index)
        os.close(self.pixels)


def write_whole(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at a place in a file.

    Raises:
        OSError: the disk is full, or cannot be written; a part may have been.
    """
    left = memoryview(data).cast("B")
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


def record_place(index: int) -> int:
    """Return where in its file the record of an image is."""
    return _HEADER_BYTES + int(index) * RECORD.size
