"""Labelled images with random access: the one shape in which every data set reaches the library."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32
from rich.progress import track

from tljax.data.decode import decode_image
from tljax.data.folder import open_folder
from tljax.data.table import open_table
from tljax.paths import did_you_mean


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
        """Per example, the position of its class in `class_names`.

        Of soft labels the first of the largest shares; -1 of multi-label data, where there is no such class.
        """
        ...

    @property
    def targets(self) -> Float32[np.ndarray, "n k"] | None:
        """Per example, a number from 0 to 1 for each class; None where each example has one class.

        Rows sum to 1, or are one yes or no for each class where `is_multi_label`.
        """
        ...

    @property
    def is_multi_label(self) -> bool:
        """Whether an example has any number of classes, each for itself."""
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


def open_source(name: str, root: str | os.PathLike, **settings: Any) -> Source:
    """Open a data set by its registered name.

    Args:
        name: "elpv", "folder" or "table".
        root: where its files are, or are to be prepared.
        settings: other keyword arguments of what `source_opener` returns.

    Raises:
        ValueError: the name is not known, or the settings do not fit.
    """
    return source_opener(name)(root, **settings)


def source_opener(name: str) -> Callable[..., Source]:
    """Return the function that opens a data set, whose keyword arguments are "root" and those of the data set.

    Raises:
        ValueError: the name is not known.
    """
    if name not in SOURCES:
        raise ValueError(f"no data source {name!r}{did_you_mean(name, SOURCES)}; known: {sorted(SOURCES)}")
    return SOURCES[name]


def has_labels(source: Source) -> Bool[np.ndarray, "n k"]:
    """Return which labels the examples of a multi-label source have: those with a target of at least 0.5."""
    assert source.targets is not None
    return source.targets >= 0.5


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


def _open_elpv(root: str | os.PathLike, task: str | None = None) -> Source:
    # Its module imports tensorflow_datasets, which other sources do not need.
    from tljax.data.datasets.elpv import TASKS, elpv_source

    if task is None:
        raise ValueError(f"data source 'elpv' has several tasks and none was named; known: {sorted(TASKS)}")
    return elpv_source(root, task)


def _open_folder(root: str | os.PathLike, task: str | None = None) -> Source:
    if task is not None:
        raise ValueError(f"data source 'folder' has one task, its class folders; got task {task!r}, leave it out")
    if not os.fspath(root):
        raise ValueError(
            "data source 'folder' has no root; give --config.data.root=DIR, with one folder per class in it"
        )
    return open_folder(root)


SOURCES: dict[str, Callable[..., Source]] = {"elpv": _open_elpv, "folder": _open_folder, "table": open_table}
