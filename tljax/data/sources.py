"""Labelled images with random access: the one shape in which every data set reaches the library."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32
from rich.progress import track

from tljax.data.decode import IMAGE_SUFFIXES, decode_image
from tljax.paths import did_you_mean

log = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """Encoded images in a fixed order with their labels; picklable, so that worker processes can read it."""

    @property
    def name(self) -> str:
        """What reports call the data."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that labels count in."""
        ...

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Per example, the position of its class in `class_names`."""
        ...

    @property
    def weights(self) -> Float32[np.ndarray, " n"]:
        """Confidence of each label, 1 where nothing is known."""
        ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """What else is known of each example, for strata and groups."""
        ...

    @property
    def licence(self) -> str:
        """Licence of the images."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the encoded images and their order; labels are not in it, so features outlive a task."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        """Read one example: {"image": encoded bytes, "name": str}."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder:
    """Images in one folder per class; `open_folder` makes it."""

    root: Path
    files: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.name

    @property
    def weights(self) -> Float32[np.ndarray, " n"]:
        """All 1."""
        return np.ones(len(self.files), np.float32)

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """None."""
        return {}

    @property
    def licence(self) -> str:
        """Unknown: a folder does not say."""
        return "not stated"

    @property
    def fingerprint(self) -> str:
        """Identity of the encoded images and their order; the first use reads every file."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = ImageDigest()
        for index in track(range(len(self)), f"fingerprint of {self.name}", transient=True):
            digest.update(self[index]["image"])
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        file = self.files[index]
        return {"image": (self.root / file).read_bytes(), "name": file}


class ImageDigest:
    """Hash of a sequence of encoded images: where one ends and the next begins counts too."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, image: bytes) -> None:
        """Add the next image."""
        self._digest.update(len(image).to_bytes(8, "little"))
        self._digest.update(image)

    def hexdigest(self) -> str:
        """Return 32 hex digits for the images so far."""
        return self._digest.hexdigest()


def open_folder(root: str | os.PathLike) -> ImageFolder:
    """List the images of `root/CLASS/*` by class and name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no class folders, or some without images; the message says what is there.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; wanted one folder per class in it, with the images inside")
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not folders:
        raise ValueError(f"{root} has no class folders but {_listing(root)}; put the images of each class in a folder")
    images = [[entry for entry in _visible(folder) if _is_image(entry)] for folder in folders]
    empty = [
        f"{folder.name} has {_listing(folder)}" for folder, inside in zip(folders, images, strict=True) if not inside
    ]
    if empty:
        raise ValueError(
            f"class folders of {root} without images ({' '.join(IMAGE_SUFFIXES)}):\n  "
            + "\n  ".join(empty)
            + "\nopen the folder that holds the class folders, or put their images there"
        )
    others = sum(len(_visible(folder)) for folder in folders) - sum(map(len, images))
    if others:
        log.warning("%s: %d entries in the class folders are not images and are left out", root, others)
    strays = sum(map(_is_image, _visible(root)))
    if strays:
        log.warning("%s: %d images are in no class folder and are left out", root, strays)
    return ImageFolder(
        root=root,
        files=tuple(f"{file.parent.name}/{file.name}" for inside in images for file in inside),
        class_names=tuple(folder.name for folder in folders),
        labels=np.repeat(np.arange(len(folders), dtype=np.int32), [len(inside) for inside in images]),
    )


def open_source(name: str, root: str | os.PathLike, task: str | None = None) -> Source:
    """Open a data set by its registered name.

    Args:
        name: "elpv" or "folder".
        root: where its files are, or are to be prepared.
        task: which of its labels to use; only for data sets that have several.

    Raises:
        ValueError: the name or the task is not known.
    """
    if name not in SOURCES:
        raise ValueError(f"no data source {name!r}{did_you_mean(name, SOURCES)}; known: {sorted(SOURCES)}")
    return SOURCES[name](root, task)


def verify(source: Source) -> list[tuple[str, str]]:
    """Decode every image and return (name, problem) of those that cannot be."""
    damaged = []
    for index in track(range(len(source)), f"decoding {source.name}", transient=True):
        example = source[index]
        try:
            decode_image(example["image"], example["name"])
        except ValueError as error:
            damaged.append((example["name"], str(error)))
    return damaged


def _open_elpv(root: str | os.PathLike, task: str | None) -> Source:
    # Its module imports tensorflow_datasets, which other sources do not need.
    from tljax.data.datasets.elpv import TASKS, elpv_source

    if task is None:
        raise ValueError(f"data source 'elpv' has several tasks and none was named; known: {sorted(TASKS)}")
    return elpv_source(root, task)


def _open_folder(root: str | os.PathLike, task: str | None) -> Source:
    if task is not None:
        raise ValueError(f"data source 'folder' has one task, its class folders; got task {task!r}, leave it out")
    if not os.fspath(root):
        raise ValueError(
            "data source 'folder' has no root; give --config.data.root=DIR, with one folder per class in it"
        )
    return open_folder(root)


SOURCES: dict[str, Callable[[str | os.PathLike, str | None], Source]] = {"elpv": _open_elpv, "folder": _open_folder}


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()


def _listing(folder: Path) -> str:
    """Name a few of the entries of a folder."""
    names = [entry.name + "/" * entry.is_dir() for entry in _visible(folder)]
    shown = ", ".join(names[:5]) if names else "nothing"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown
