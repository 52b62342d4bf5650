"""The eight views of a square image under flips and quarter turns."""

import numpy as np
from jaxtyping import Shaped

VIEWS = 8


def dihedral(image: Shaped[np.ndarray, "side side c"], view: int | np.integer) -> Shaped[np.ndarray, "side side c"]:
    """Return one of the eight symmetric views of a square image.

    The bits of `view` are independent: 1 flips left and right, 2 flips top and bottom, 4 swaps rows and
    columns (last, so that the first 1, 2, 4 and 8 views are groups, each for more symmetric data):
    0 as it is, 1 mirrored, 2 upside down, 3 half turn, 4 to 7 the same with rows and columns swapped,
    of which 5 and 6 are the quarter turns.

    Raises:
        ValueError: the view is not in 0..7.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view is {view}, wanted 0 to {VIEWS - 1}")
    if view & 1:
        image = image[:, ::-1]
    if view & 2:
        image = image[::-1]
    if view & 4:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)
