"""Image files below one folder: what sources of such files share."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tljax.data.digest import digest_images


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """Encoded images in a fixed order.

    Args:
        root: folder that `files` are below.
        name: what reports call the data.
        files: from `root` on.
    """

    root: Path
    name: str
    files: tuple[str, ...]

    @property
    def licence(self) -> str:
        """Unknown: files do not say."""
        return "not stated"

    @property
    def fingerprint(self) -> str:
        """Identity of the encoded images and their order; the first use reads every file."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return digest_images(self.name, len(self), lambda index: self[index]["image"])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        file = self.files[index]
        return {"image": (self.root / file).read_bytes(), "name": file}
