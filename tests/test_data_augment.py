"""The eight views are the dihedral group of the square."""

import numpy as np
import pytest

from tljax.data.augment import VIEWS, dihedral

# Pixel (r, c) holds its own number, so an array is a record of where each pixel went.
IMAGE = np.arange(5 * 5 * 3).reshape(5, 5, 3)
SEEN = [dihedral(IMAGE, view) for view in range(VIEWS)]


def position(image):
    """Which view an image is."""
    found = [view for view in range(VIEWS) if np.array_equal(SEEN[view], image)]
    assert len(found) == 1
    return found[0]


def test_views_are_the_documented_ones():
    for view, expected in {
        0: IMAGE,
        1: np.fliplr(IMAGE),
        2: np.flipud(IMAGE),
        3: np.rot90(IMAGE, 2),
        4: np.swapaxes(IMAGE, 0, 1),
        5: np.rot90(IMAGE, 1),
        6: np.rot90(IMAGE, 3),
        7: np.rot90(np.swapaxes(IMAGE, 0, 1), 2),
    }.items():
        np.testing.assert_array_equal(SEEN[view], expected, err_msg=str(view))


def test_views_keep_whole_pixels_and_differ():
    assert len({view.tobytes() for view in SEEN}) == VIEWS
    pixels = {tuple(pixel) for pixel in IMAGE.reshape(-1, 3)}
    for view in SEEN:
        assert {tuple(pixel) for pixel in view.reshape(-1, 3)} == pixels


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_first_views_are_a_group(size):
    table = np.array([[position(dihedral(SEEN[first], second)) for second in range(size)] for first in range(size)])
    assert set(table.flat) == set(range(size))
    for line in (*table, *table.T):  # a Latin square: every view has an inverse
        assert len(set(line)) == size


@pytest.mark.parametrize("view", [-1, 8])
def test_other_views_are_refused(view):
    with pytest.raises(ValueError, match=f"view is {view}, wanted 0 to 7"):
        dihedral(IMAGE, view)


def test_quarter_turns_want_squares():
    image = np.zeros((3, 4, 3), np.uint8)
    assert dihedral(image, 3).shape == (3, 4, 3)
    with pytest.raises(ValueError, match="view 5 swaps rows and columns, which an image of 3 x 4 cannot take"):
        dihedral(image, 5)
