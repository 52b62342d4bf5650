"""The views of an image that are stored, once and for all: what later epochs can draw from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tljax.data.augment import VIEWS, Augment, augment_image, dihedral
from tljax.data.splits import hashed_seed
from tljax.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Fixed views of each image, of which view 0 is the image as it is.

    Args:
        views: how many.
        augment: how every view but the first is changed, drawn once: view v of image i is a function of (seed, i, v)
            alone. None for the views of `dihedral`, of which there are 8.
        seed: of what is drawn.

    Raises:
        ValueError: a number of views that there cannot be.
    """

    views: int = 1
    augment: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment is None and not 1 <= self.views <= VIEWS:
            raise ValueError(f"views is {self.views}, wanted 1 to {VIEWS}; more are there only with augment")
        if self.augment is not None and self.views < 2:
            raise ValueError(
                f"views is {self.views} and view 0 is the image as it is, which leaves none for augment; wanted 2 or "
                "more, or no augment"
            )

    def show(
        self, image: UInt8[np.ndarray, "y x 3"], index: int, preprocess: Preprocess
    ) -> UInt8[np.ndarray, "views h w c"]:
        """Return all views of an image.

        Args:
            image: decoded.
            index: of the image in its source.
            preprocess: of the model.
        """
        plain = preprocess(image)
        if self.augment is None:
            return np.stack([dihedral(plain, view) for view in range(self.views)])
        drawn = [self._draw(self.augment, image, index, view, preprocess) for view in range(1, self.views)]
        return np.stack([plain, *drawn])

    def _draw(self, augment: Augment, image: np.ndarray, index: int, view: int, preprocess: Preprocess) -> np.ndarray:
        generator = np.random.default_rng([hashed_seed(self.seed, "bank"), index, view])
        turn = generator.integers(augment.views)
        return augment_image(image, generator, augment, preprocess, view=turn)

    def describe(self) -> dict[str, Any]:
        """Return all that determines the views, as plain values."""
        if self.augment is None:
            return {"views": self.views}
        return {"views": self.views, "augment": self.augment.describe(), "seed": self.seed}
