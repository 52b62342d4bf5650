"""The eight views of an image under flips and quarter turns."""

import numpy as np
from jaxtyping import Shaped

VIEWS = 8


def dihedral(image: Shaped[np.ndarray, "h w c"], view: int | np.integer) -> Shaped[np.ndarray, "y x c"]:
    """Return one of the eight symmetric views of an image.

    The bits of `view` are independent: 1 flips left and right, 2 flips top and bottom, 4 swaps rows and
    columns (last, so that the first 1, 2, 4 and 8 views are groups, each for more symmetric data):
    0 as it is, 1 mirrored, 2 upside down, 3 half turn, 4 to 7 the same with rows and columns swapped,
    of which 5 and 6 are the quarter turns.

    Raises:
        ValueError: the view is not in 0..7, or would give an image that is not square another shape.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view is {view}, wanted 0 to {VIEWS - 1}")
    if view & 4 and image.shape[0] != image.shape[1]:
        raise ValueError(
            f"view {view} swaps rows and columns, which an image of {image.shape[0]} x {image.shape[1]} cannot take: "
            "use at most 4 views"
        )
    if view & 1:
        image = image[:, ::-1]
    if view & 2:
        image = image[::-1]
    if view & 4:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)
