"""A part of a data set that stands for the whole, to measure on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from tljax.data.sources import Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Some of the images of a source, as a source; picklable.

    Args:
        source: the whole.
        indices: of the part.
    """

    source: Source
    indices: np.ndarray

    @property
    def name(self) -> str:
        """That of the whole."""
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the whole."""
        return self.source.class_names

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Of the part."""
        return self.source.labels[self.indices]

    @property
    def targets(self) -> Float32[np.ndarray, "n k"] | None:
        """Of the part."""
        return None if self.source.targets is None else self.source.targets[self.indices]

    @property
    def is_multi_label(self) -> bool:
        """As the whole."""
        return self.source.is_multi_label

    @property
    def weights(self) -> Float32[np.ndarray, " n"]:
        """Of the part."""
        return self.source.weights[self.indices]

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Of the part."""
        return {name: column[self.indices] for name, column in self.source.columns.items()}

    @property
    def licence(self) -> str:
        """That of the whole."""
        return self.source.licence

    @property
    def fingerprint(self) -> str:
        """A name for the length of a measurement, where the true one would read every file."""
        return f"sample of {self.source.name}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        return self.source[self.indices[index]]
