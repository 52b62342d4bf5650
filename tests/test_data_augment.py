"""The eight views are the dihedral group of the square; crops, colours and erased boxes are what their papers say."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tljax.data.augment import (
    VIEWS,
    Augment,
    Shrink,
    augment_image,
    dihedral,
    draw_crop,
    erase_box,
)
from tljax.data.trivial_augment import OPERATIONS, SIGNED, change_trivially, draw_operation
from tljax.preprocess import Preprocess

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


PHOTO = np.random.default_rng(8).integers(0, 256, (30, 40, 3), np.uint8)
DARK = (PHOTO // 2 + 20).astype(np.uint8)
SIZED = Preprocess(size=(16, 20), resize=24)


def many(draw, count=400):
    return [draw(np.random.default_rng(seed)) for seed in range(count)]


def augmented(preprocess: Callable = SIZED, *, seed=0, view=1, **options):
    return augment_image(PHOTO, np.random.default_rng(seed), Augment(**options), preprocess, view=view)


def test_views_alone_are_the_preprocessing_and_a_view():
    np.testing.assert_array_equal(augmented(views=4, view=3), dihedral(SIZED(PHOTO), 3))


def test_crops_have_the_share_and_the_ratio_asked_for():
    crops = np.array(many(lambda generator: draw_crop(300, 400, generator, (0.2, 0.5))))
    top, left, height, width = crops.T
    assert (crops >= 0).all()
    assert (top + height).max() <= 300
    assert (left + width).max() <= 400
    # Sides are rounded to pixels, of which they have at least 100.
    share, ratio = height * width / 120_000, width / height
    for values, least, greatest in ((share, 0.2, 0.5), (ratio, 3 / 4, 4 / 3)):
        assert least * 0.99 < values.min() < least * 1.05
        assert greatest * 0.95 < values.max() < greatest * 1.01
    assert abs(share.mean() - 0.35) < 5 * 0.3 / np.sqrt(12 * 400)  # uniform
    assert abs(np.log(ratio).mean()) < 5 * np.log(16 / 9) / np.sqrt(12 * 400)
    assert len(np.unique(top)) > 50
    assert len(np.unique(left)) > 50


@pytest.mark.parametrize(
    ("shape", "wanted"), [((10, 100), (0, 43, 10, 13)), ((100, 9), (44, 0, 12, 9)), ((30, 40), (0, 0, 30, 40))]
)
def test_the_middle_is_taken_where_no_crop_fits(shape, wanted):
    crops = set(many(lambda generator: draw_crop(shape[0], shape[1], generator, (1.0, 1.0)), 40))
    assert wanted in crops
    assert len(crops) == 1 or shape == (30, 40)


def test_a_crop_is_resized_by_the_model_s_interpolation():
    preprocess = Preprocess(size=(16, 20), resize=24, interpolation="nearest")
    top, left, height, width = draw_crop(30, 40, np.random.default_rng(3), (0.1, 0.6))
    # The nearest pixel of each of the 16 x 20 middles.
    rows = top + np.floor((np.arange(16) + 0.5) * height / 16).astype(int)
    columns = left + np.floor((np.arange(20) + 0.5) * width / 20).astype(int)
    got = augmented(preprocess, seed=3, view=0, crop_scale=(0.1, 0.6))
    np.testing.assert_array_equal(got, PHOTO[rows[:, None], columns[None]])
    smooth = augmented(seed=3, view=0, crop_scale=(0.1, 0.6))
    box = (left, top, left + width, top + height)
    wanted = Image.fromarray(PHOTO).resize((20, 16), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(smooth, np.asarray(wanted))


@pytest.mark.parametrize(("shape", "wanted"), [((30, 40), (18, 24)), ((41, 33), (22, 18)), ((18, 90), (18, 90))])
def test_large_images_are_shrunk_to_their_short_side_once(shape, wanted):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shrink = Shrink(short_side=18, interpolation="bilinear")
    small = shrink(photo)
    assert small.shape[:2] == wanted
    resized = Image.fromarray(photo).resize(wanted[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small, np.asarray(resized))
    assert shrink(small) is small


def test_crops_are_taken_from_the_smaller_image():
    preprocess = Preprocess(size=16, interpolation="bilinear")
    small = Shrink(short_side=18, interpolation="bilinear")(PHOTO)
    assert small.shape != PHOTO.shape
    wanted = augment_image(small, np.random.default_rng(3), Augment(crop_scale=(0.1, 0.6)), preprocess, view=1)
    got = augmented(preprocess, seed=3, view=1, crop_scale=(0.1, 0.6), short_side=18)
    np.testing.assert_array_equal(got, wanted)


def test_names_of_what_is_stored_outlive_a_setting_that_came_later():
    assert "short_side" not in Augment(crop_scale=(0.1, 0.6)).describe()
    assert Augment(crop_scale=(0.1, 0.6), short_side=18).describe()["short_side"] == 18


def test_models_of_grey_and_swapped_channels_see_the_same_crop():
    options = {"seed": 5, "view": 2, "crop_scale": (0.3, 1.0), "trivial_augment": True}
    in_rgb = augmented(**options)
    swapped = augmented(Preprocess(size=(16, 20), channel_order="bgr"), **options)
    np.testing.assert_array_equal(swapped, in_rgb[:, :, ::-1])
    grey = augmented(Preprocess(size=(16, 20), mean=(0.5,), std=(0.5,)), **options)
    luma = in_rgb @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[:, :, 0], luma, atol=0.51)  # rounded


def test_an_erased_box_is_random_bytes_and_the_rest_is_untouched():
    image = np.full((50, 60, 3), 7, np.uint8)
    shares, ratios = [], []
    for erased in many(lambda generator: erase_box(image, generator), 300):
        rows, columns = np.nonzero((erased != 7).any(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # of 3 random bytes one is hardly ever 7, and three never
        shares.append(height * width / 3000)
        ratios.append(width / height)
    assert 0.018 < min(shares) < 0.03
    assert 0.31 < max(shares) < 0.345
    assert 0.25 < min(ratios) < 0.4
    assert 2.5 < max(ratios) < 3.7
    assert not (image != 7).any()
    box = erase_box(image, np.random.default_rng(0))
    assert len(np.unique(box[box != 7])) > 200


def test_erasing_follows_its_probability_and_keeps_what_is_around():
    plain = dihedral(SIZED(PHOTO), 1)
    is_erased = [not np.array_equal(augmented(seed=seed, erasing_probability=0.3), plain) for seed in range(400)]
    assert abs(np.mean(is_erased) - 0.3) < 0.115  # 5 standard errors
    assert np.array_equal(augmented(erasing_probability=0.0), plain)
    assert not np.array_equal(augmented(erasing_probability=1.0), plain)


def test_operations_are_drawn_evenly():
    operations, strengths, signs = zip(*many(draw_operation, 3000), strict=True)
    assert len(OPERATIONS) == 14
    for values, wanted in ((operations, OPERATIONS), (strengths, range(31)), (signs, (-1, 1))):
        names, counts = np.unique(np.array(values), return_counts=True)
        assert sorted(names.tolist()) == sorted(wanted)
        assert np.abs(counts - 3000 / len(wanted)).max() < 5 * np.sqrt(3000 / len(wanted))


@pytest.mark.parametrize("operation", SIGNED)
def test_the_least_strength_of_signed_operations_changes_nothing(operation):
    for sign in (-1, 1):
        np.testing.assert_array_equal(change_trivially(PHOTO, operation, 0, sign), PHOTO)
    assert not np.array_equal(change_trivially(PHOTO, operation, 20, 1), change_trivially(PHOTO, operation, 20, -1))


def by_nearest_pixel(matrix):
    """Take each pixel from where the middle of it is mapped to, black from outside."""
    wanted = np.zeros_like(PHOTO)
    for row, column in np.ndindex(30, 40):
        x, y = np.floor(np.array(matrix) @ [column + 0.5, row + 0.5, 1]).astype(int)
        if 0 <= x < 40 and 0 <= y < 30:
            wanted[row, column] = PHOTO[y, x]
    return wanted


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("strength", [7, 20, 30])
def test_geometry(strength, sign):
    share = sign * strength / 30
    moved = int(32 * share)
    for operation, matrix in {
        "shear_x": [[1, 0.99 * share, 0], [0, 1, 0]],
        "shear_y": [[1, 0, 0], [0.99 * share, 1, 0]],
        "translate_x": [[1, 0, -moved], [0, 1, 0]],
        "translate_y": [[1, 0, 0], [0, 1, -moved]],
    }.items():
        got = change_trivially(PHOTO, operation, strength, sign)
        np.testing.assert_array_equal(got, by_nearest_pixel(matrix), err_msg=operation)
    # Anticlockwise about the middle: Pillow's angle counts against the axes of an image.
    cos, sin = np.cos(np.radians(135 * share)), np.sin(np.radians(135 * share))
    middle = np.array([20, 15])
    turn = np.array([[cos, -sin], [sin, cos]])
    got = change_trivially(PHOTO, "rotate", strength, sign)
    wanted = by_nearest_pixel(np.column_stack([turn, middle - turn @ middle]))
    # Pillow rounds the matrix, so that a pixel on an edge may fall to the other side.
    assert np.mean((got != wanted).any(axis=2)) < 0.03


def test_a_quarter_turn_is_exact():
    square = PHOTO[:, :30]
    np.testing.assert_array_equal(change_trivially(square, "rotate", 20, 1), np.rot90(square))


@pytest.mark.parametrize("factor", [0.01, 1 - 0.33, 1.33, 1.99])
def test_colours(factor):
    strength, sign = round(abs(factor - 1) / 0.99 * 30), 1 if factor > 1 else -1
    exact = PHOTO.astype(np.float64)
    luma = np.round(exact @ [0.299, 0.587, 0.114])[:, :, None]
    # Each is a line through the image and something without the quality: black, its greys, its mean grey.
    for operation, without in {"brightness": 0.0, "color": luma, "contrast": np.floor(luma.mean() + 0.5)}.items():
        wanted = np.clip(without + factor * (exact - without), 0, 255)
        got = change_trivially(PHOTO, operation, strength, sign)
        np.testing.assert_allclose(got, wanted, atol=2, err_msg=operation)  # Pillow rounds the greys, and cuts


def test_sharpness_goes_away_from_a_smoothed_image():
    # Pillow's SMOOTH filter: weights 1, and 5 in the middle, over 13; edges are left.
    padded = PHOTO.astype(np.float64)
    smooth = padded.copy()
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    total = 4 * padded + sum(np.roll(padded, shift, axis=(0, 1)) for shift in shifts)
    smooth[1:-1, 1:-1] = (total / 13)[1:-1, 1:-1]
    wanted = np.clip(smooth + 1.99 * (padded - smooth), 0, 255)
    np.testing.assert_allclose(change_trivially(PHOTO, "sharpness", 30, 1), wanted, atol=2)


def test_colour_tables():
    exact = DARK.astype(np.int64)
    assert OPERATIONS[0] == "identity"
    np.testing.assert_array_equal(change_trivially(DARK, "identity", 9, 1), DARK)
    for strength, bits in ((0, 8), (2, 8), (3, 7), (15, 5), (30, 2)):
        step = 2 ** (8 - bits)
        np.testing.assert_array_equal(change_trivially(DARK, "posterize", strength, 1), exact // step * step)
    for strength in (0, 10, 17, 30):
        threshold = 255 * (1 - strength / 30)
        wanted = np.where(exact >= round(threshold, 9), 255 - exact, exact)
        np.testing.assert_array_equal(change_trivially(DARK, "solarize", strength, 1), wanted)
    least, greatest = exact.min(axis=(0, 1)), exact.max(axis=(0, 1))
    wanted = (exact - least) * 255 / (greatest - least)
    np.testing.assert_allclose(change_trivially(DARK, "auto_contrast", 3, 1), wanted, atol=1)
    # Equalized values are their own ranks, so that the highest is 255. Pillow counts in steps of n / 255 pixels, cut
    # to whole ones, so n is large here.
    large = np.tile(DARK, (8, 8, 1))
    equal = change_trivially(large, "equalize", 3, 1)
    for channel in range(3):
        values = large[:, :, channel]
        ranks = np.searchsorted(np.sort(values, axis=None), values)
        np.testing.assert_allclose(equal[:, :, channel], 255 * ranks / ranks.max(), atol=1.5)


def test_an_augmented_image_is_a_function_of_its_arguments():
    options = {"views": 8, "crop_scale": (0.2, 1.0), "trivial_augment": True, "erasing_probability": 0.5}
    augment = pickle.loads(pickle.dumps(Augment(**options)))
    assert augment == Augment(**options)
    images = [augmented(seed=seed, **options) for seed in range(20)]
    for seed, image in enumerate(images):
        assert (image.shape, image.dtype) == ((16, 20, 3), np.uint8)
        np.testing.assert_array_equal(image, augmented(seed=seed, **options))
    assert len({image.tobytes() for image in images}) == 20


def test_augmentation_out_of_range_is_named():
    with pytest.raises(
        ValueError, match=r"views is 9, .*; crop_scale is \(0\.5, 0\.2\), .*; erasing_probability is 2\.0"
    ):
        Augment(views=9, crop_scale=(0.5, 0.2), erasing_probability=2.0)
    with pytest.raises(ValueError, match="short_side is 256, wanted pixels above 0, and a crop_scale"):
        Augment(short_side=256)
    with pytest.raises(ValueError, match=r"no operation 'rotat' \(did you mean 'rotate'\?\)"):
        change_trivially(PHOTO, "rotat", 1, 1)
    with pytest.raises(ValueError, match="need a Preprocess, got function"):
        augmented(lambda image: image, trivial_augment=True)
