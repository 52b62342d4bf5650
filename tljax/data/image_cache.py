"""Decoded images on disk, so that later epochs and later runs need not decode them again.

A cache is a folder with two files. `pixels.bin` holds images one after the other; `index.bin` says what of it is in
use and, in a record for each image of the source, where its pixels are and their checksum. Any number of processes
read and write it at once: room is taken under a lock, pixels are written next, and the record that points to them
last, so a process that is killed loses what it was writing and no more. A record with a wrong checksum of its own, or
of its pixels, counts as missing: what it stood for is decoded again.
"""

import errno
import logging
import math
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tljax import plain, rundir
from tljax.data.augment import Preparation, Shrink
from tljax.data.cache_files import RECORD, CacheFiles, record_place, write_whole
from tljax.data.decode import decode_image, describe_decoder
from tljax.data.sources import Source
from tljax.preprocess import Preprocess

META = "meta.json"
# Raised when the files mean something else.
FORMAT = 1

# So that no image shares a word with another.
_ALIGNMENT = 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheRoom:
    """Where decoded images may be kept, and how much.

    Args:
        directory: a folder for each source and preparation is made in it.
        budget_bytes: that each of those may take; images beyond it are decoded each time.
    """

    directory: Path
    budget_bytes: int


def open_image_cache(room: CacheRoom, source: Source, preprocess: Preprocess | Shrink | None) -> "ImageCache":
    """Open the cache of a source, new or with what earlier runs have left in it.

    Args:
        room: where, and how much.
        source: of the images; its fingerprint names the folder.
        preprocess: done to the images that are kept, by which they are much smaller; None keeps them as decoded.

    Raises:
        OSError: the folder cannot be written.
    """
    spec = {
        "data": source.fingerprint,
        "decoder": describe_decoder(),
        "preprocess": None if preprocess is None else preprocess.describe(),
        "format": FORMAT,
    }
    directory = room.directory / plain.fingerprint(spec)[:16]
    directory.mkdir(parents=True, exist_ok=True)
    rundir.write_json(directory / META, {"source": source.name, "num_images": len(source), **spec})
    cache = ImageCache(directory=directory, num_images=len(source), budget_bytes=room.budget_bytes)
    cache.begin()
    return cache


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCache:
    """Images of a source by their position in it; picklable, each process opens the files for itself.

    Args:
        directory: of this cache alone.
        num_images: of the source.
        budget_bytes: that the pixels may take.
    """

    directory: Path
    num_images: int
    budget_bytes: int

    def begin(self) -> None:
        """Make the files where they are missing, and try again where the disk was full."""
        with self._files.locked():
            used, _ = self._files.read_header()
            self._files.write_header(used, is_full=False)

    def get(self, index: int) -> UInt8[np.ndarray, "h w c"] | None:
        """Return an image, which cannot be written to, or None where it is not there."""
        files = self._files
        packed = os.pread(files.index, RECORD.size, record_place(index))
        if len(packed) < RECORD.size:
            return None
        offset, height, width, channels, checksum, own = RECORD.unpack(packed)
        size = height * width * channels
        if not size or own != _checksum_of_record(packed, index):
            return None
        mapped = files.mapped(offset + size)
        if mapped is None:
            return None
        image = np.frombuffer(mapped, np.uint8, size, offset).reshape(height, width, channels)
        # Once in each process: the system may have lost power since, with the record on disk and not the pixels.
        if not files.checked[index]:
            if zlib.crc32(image.data) != checksum:
                return None
            files.checked[index] = True
        return image

    def put(self, index: int, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Keep an image, if there is room; where the disk is full it is not kept, and one process says so."""
        if self._files.is_closed:
            return
        pixels = np.ascontiguousarray(image)
        try:
            offset = self._take(pixels.nbytes)
            if offset is None:
                return
            write_whole(self._files.pixels, pixels.data, offset)
            record = RECORD.pack(offset, *pixels.shape, zlib.crc32(pixels.data), 0)
            record = record[:-4] + _checksum_of_record(record, index).to_bytes(4, "little")
            write_whole(self._files.index, record, record_place(index))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._stop(error)

    @property
    def used_bytes(self) -> int:
        """Size of what is kept."""
        return self._files.read_header()[0]

    def _take(self, size: int) -> int | None:
        """Take room for an image; None where there is none."""
        room = math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        with self._files.locked():
            used, is_full = self._files.read_header()
            if is_full or used + room > self.budget_bytes:
                self._files.is_closed = True
                return None
            self._files.write_header(used + room, is_full=False)
            self._files.grow(used + room)
        return used

    def _stop(self, error: OSError) -> None:
        """Go on without keeping more: nothing is lost by it but time."""
        with self._files.locked():
            used, was_full = self._files.read_header()
            self._files.write_header(used, is_full=True)
        self._files.is_closed = True
        if not was_full:
            log.warning(
                "%s: %s after %.3g GB of decoded images; the rest is decoded in every epoch. Make room on that disk, "
                "or lower execution.image_cache_gb",
                self.directory, error.strerror, used / 1e9,
            )  # fmt: skip

    @cached_property
    def _files(self) -> CacheFiles:
        return CacheFiles(self.directory, self.num_images)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_files"}


def _checksum_of_record(record: bytes, index: int) -> int:
    return zlib.crc32(record[:-4] + int(index).to_bytes(8, "little"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The images of a source as they are before anything random, from a cache where there is one; picklable.

    Args:
        source: of the images.
        preprocess: what is done to each after it has been decoded; None for nothing.
        cache: from `open_image_cache` with the same source and preprocessing; None decodes every time.
    """

    source: Source
    preprocess: Preparation | None
    cache: ImageCache | None

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        kept = None if self.cache is None else self.cache.get(index)
        if kept is not None:
            return kept
        example = self.source[index]
        image = decode_image(example["image"], example["name"])
        if self.preprocess is not None:
            image = self.preprocess(image)
        if self.cache is not None:
            self.cache.put(index, image)
        return image
