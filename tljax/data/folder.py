"""Images in one folder per class."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from tljax.data.decode import IMAGE_SUFFIXES
from tljax.data.files import ImageFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder(ImageFiles):
    """Images in one folder per class; `open_folder` makes it."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]

    @property
    def targets(self) -> None:
        """None: one class each."""
        return None

    @property
    def is_multi_label(self) -> bool:
        """No: one class each."""
        return False

    @property
    def weights(self) -> Float32[np.ndarray, " n"]:
        """All 1."""
        return np.ones(len(self.files), np.float32)

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """None."""
        return {}


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
        name=root.name,
        files=tuple(f"{file.parent.name}/{file.name}" for inside in images for file in inside),
        class_names=tuple(folder.name for folder in folders),
        labels=np.repeat(np.arange(len(folders), dtype=np.int32), [len(inside) for inside in images]),
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()


def _listing(folder: Path) -> str:
    """Name a few of the entries of a folder."""
    names = [entry.name + "/" * entry.is_dir() for entry in _visible(folder)]
    shown = ", ".join(names[:5]) if names else "nothing"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown
