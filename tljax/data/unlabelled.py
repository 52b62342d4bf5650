"""Images without labels, of any number and some of them damaged: read in order, the damage told and not raised.

A loaded image and what is wrong with one take the same room, a row of bytes: threads and worker processes then hand
both on in the same way.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tljax.data.decode import IMAGE_SUFFIXES, convert_picture, decode_image
from tljax.data.loading import Batches, Order, Row, load_in_threads
from tljax.data.workers import check_num_workers, load_in_workers
from tljax.preprocess import Preprocess

# How long the message at the beginning of a row is; 0 for an image.
_LENGTH_BYTES = 4
_END = b"\0"


@runtime_checkable
class Unlabelled(Protocol):
    """Images with random access by place, which is not always their number."""

    def places(self) -> Iterator[int]:
        """Yield the places, in order."""
        ...

    def name(self, place: int) -> str:
        """Return what to call the image at a place."""
        ...

    def read(self, place: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read and decode the image at a place.

        Raises:
            ValueError: it cannot be decoded.
            OSError: it cannot be read.
        """
        ...


def unlabelled_batches(images: Unlabelled, preprocess: Preprocess, batch_size: int, num_workers: int = 0) -> Batches:
    """Read, decode and prepare images in order.

    Args:
        images: at least one; picklable where there are workers.
        preprocess: of the model.
        batch_size: rows of a batch; the last one is filled up.
        num_workers: as for `pipeline.training_batches`.

    Returns:
        {"image": uint8 [b row], for `unpack`, "place": int64 [b], "mask": bool [b], False where filled up}.

    Raises:
        ValueError: `num_workers` is out of range.
    """
    check_num_workers(num_workers)
    load = partial(_load, images=images, preprocess=preprocess)
    like = Row(0, next(images.places()), 0)
    orders = _orders(images.places(), batch_size)
    if num_workers:
        return load_in_workers(orders, load, like, num_workers=num_workers)
    return load_in_threads(orders, load, like)


def _orders(places: Iterator[int], batch_size: int) -> Iterator[Order]:
    while taken := list(islice(places, batch_size)):
        place = np.zeros(batch_size, np.int64)
        place[: len(taken)] = taken
        mask = np.arange(batch_size) < len(taken)
        rows = np.stack([np.zeros_like(place), place, np.zeros_like(place)], axis=1)
        yield Order(rows, mask, {"place": place, "mask": mask})


def _load(row: Row, images: Unlabelled, preprocess: Preprocess) -> UInt8[np.ndarray, " row"]:
    packed = np.zeros(_LENGTH_BYTES + int(np.prod(preprocess.shape)), np.uint8)
    length, content = packed[:_LENGTH_BYTES], packed[_LENGTH_BYTES:]
    try:
        content[:] = preprocess(images.read(row.position)).reshape(-1)
    except (ValueError, OSError) as error:
        message = np.frombuffer((str(error) or type(error).__name__).encode(errors="replace"), np.uint8)[: len(content)]
        content[:] = 0
        content[: len(message)] = message
        length[:] = np.frombuffer(len(message).to_bytes(_LENGTH_BYTES, "little"), np.uint8)
    return packed


def unpack(
    rows: UInt8[np.ndarray, "b row"], shape: tuple[int, int, int]
) -> tuple[UInt8[np.ndarray, "b height width c"], list[str | None]]:
    """Return the images of a batch, and what is wrong with each; images with something wrong are black."""
    lengths = rows[:, :_LENGTH_BYTES].copy().view("<u4")[:, 0].tolist()
    images = rows[:, _LENGTH_BYTES:].reshape(-1, *shape)  # b (h w c) -> b h w c
    problems: list[str | None] = [None] * len(rows)
    for index in np.flatnonzero(lengths).tolist():
        message = rows[index, _LENGTH_BYTES : _LENGTH_BYTES + lengths[index]].tobytes()
        problems[index] = message.decode(errors="replace")
        images[index] = 0
    return images, problems


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Images that are given one by one: paths, encoded bytes, pictures of Pillow's, or arrays uint8 [h w 3] or [h w].

    Raises:
        TypeError: one is something else; the message says which.
    """

    items: Sequence[Any]

    def __post_init__(self) -> None:
        """Find what is no image of any kind: a mistake of the caller's, as against damage."""
        wrong = [f"number {index} is {_kind(item)}" for index, item in enumerate(self.items) if not _is_image(item)]
        if wrong:
            raise TypeError(
                "; ".join(wrong[:5])
                + "; wanted paths, bytes of image files, pictures of Pillow's, or arrays uint8 [h w 3] or [h w]"
            )

    def places(self) -> Iterator[int]:
        """Yield the positions."""
        return iter(range(len(self.items)))

    def name(self, place: int) -> str:
        """Return the path, or the number of an image that has none."""
        item = self.items[place]
        return os.fspath(item) if isinstance(item, str | os.PathLike) else f"image {place}"

    def read(self, place: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read and decode an image; raises as `Unlabelled.read`."""
        item, name = self.items[place], self.name(place)
        if isinstance(item, np.ndarray):
            return item if item.ndim == 3 else np.stack([item] * 3, axis=-1)
        if isinstance(item, Image.Image):
            return convert_picture(item, name)
        return decode_image(item if isinstance(item, bytes) else Path(item).read_bytes(), name)


def _is_image(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.dtype == np.uint8 and item.size > 0 and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3))
    return isinstance(item, str | os.PathLike | bytes | Image.Image)


def _kind(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"an array {item.dtype} {list(item.shape)}"
    return f"of type {type(item).__name__}"


@dataclass(frozen=True, kw_only=True, eq=False)
class FileList:
    """Paths of images in a file, each ended by a zero byte; a place is where a path begins there.

    So neither this process nor its workers hold the list; `spool` writes it.
    """

    path: Path
    count: int

    def places(self) -> Iterator[int]:
        """Yield where each path begins."""
        with self.path.open("rb") as file:
            rest, start = b"", 0
            while chunk := file.read(2**16):
                *whole, rest = (rest + chunk).split(_END)
                for name in whole:
                    yield start
                    start += len(name) + len(_END)

    def name(self, place: int) -> str:
        """Return the path of an image."""
        with self.path.open("rb") as file:
            file.seek(place)
            found = b""
            while _END not in found:
                found += file.read(4096)
        return os.fsdecode(found.split(_END, 1)[0])

    def read(self, place: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read and decode an image; raises as `Unlabelled.read`."""
        name = self.name(place)
        return decode_image(Path(name).read_bytes(), name)


def spool(paths: Iterable[str], folder: str | os.PathLike) -> FileList:
    """Write paths into a new file of a folder.

    Raises:
        ValueError: there are none.
    """
    count = 0
    with tempfile.NamedTemporaryFile("wb", dir=folder, delete=False) as file:
        for path in paths:
            file.write(os.fsencode(path) + _END)
            count += 1
    if not count:
        raise ValueError("there are no images: the list is empty")
    return FileList(path=Path(file.name), count=count)


def find_images(folder: str | os.PathLike) -> Iterator[str]:
    """Yield the image files below a folder in order of their names, the files of a folder before its folders.

    Hidden entries are left out. Links are followed, but for those back to a folder that they are in.

    Raises:
        OSError: a folder cannot be listed.
    """
    yield from _find(os.fspath(folder), ())


def _find(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in visible:
        if not is_folder and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            yield os.path.join(folder, name)
    for name, is_folder in visible:
        if is_folder:
            yield from _find(os.path.join(folder, name), (*above, here))
