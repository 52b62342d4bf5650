"""A source that notes what is read of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tljax.data.sample import Sample
from tljax.data.sources import Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Noted(Sample):
    read: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        self.read.append(int(index))
        return super().__getitem__(index)


def noted(source: Source) -> Noted:
    """All of a source."""
    return Noted(source=source, indices=np.arange(len(source)))
