"""Resizing in JAX beside Pillow: no pixel is more than a level off, and few are off at all."""

import functools

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from tljax import resizing
from tljax.preprocess import Preprocess

# Wide and enlarged along one side, tall, and enlarged along both.
SIZES = ((37, 120), (200, 50), (20, 25))
CASES = (
    {"size": 48},
    {"size": 48, "resize": 56, "crop_rounding": "even"},
    {"size": 48, "resize": 55, "crop_rounding": "even", "interpolation": "bilinear"},
    {"size": (30, 40), "resize": (35, 51)},
    {"size": 24, "mean": (0.5,), "std": (0.5,)},
    {"size": 48, "resize": 49, "channel_order": "bgr"},
)


def compiled(preprocess):
    """With sizes that are not known, as it is exported."""
    b, h, w = export.symbolic_shape("b, h, w")
    function = jax.jit(functools.partial(resizing.prepare, preprocess=preprocess))
    return jax.jit(export.export(function)(jax.ShapeDtypeStruct((b, h, w, 3), np.uint8)).call)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pixels_are_those_of_pillow_to_a_level(case):
    preprocess = Preprocess(**case)
    function = compiled(preprocess)
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        wanted = np.stack([preprocess(image) for image in images]).astype(int)
        found = np.asarray(function(images)).astype(int)
        difference = np.abs(found - wanted)
        assert difference.max() <= 1, (height, width)
        # At small sizes many sums lie just between two levels, where the last bit of Pillow's coefficients decides.
        assert (difference > 0).mean() < 6e-2, (height, width)


@pytest.mark.parametrize("size", [(333, 257), (257, 400)])
def test_at_usual_sizes_few_pixels_are_off(size):
    preprocess = Preprocess(size=224, resize=256)
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    difference = np.abs(np.asarray(compiled(preprocess)(image[None]))[0].astype(int) - preprocess(image))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 5e-4


@pytest.mark.parametrize("interpolation", ["lanczos", "hamming"])
def test_every_filter_is_pillows(interpolation):
    preprocess = Preprocess(size=32, interpolation=interpolation)
    image = np.random.default_rng(1).integers(0, 256, (81, 50, 3), np.uint8)
    found = np.asarray(compiled(preprocess)(image[None]))[0].astype(int)
    assert np.abs(found - preprocess(image)).max() <= 1


def test_the_order_of_the_passes_is_that_of_the_installed_pillow():
    """Pillow 13 resizes some images down before along, which changes pixels; where it does is found by trying."""
    bicubic = Image.Resampling.BICUBIC
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in ((79, 64, 50, 50), (78, 64, 50, 50), (40, 30, 41, 20), (90, 12, 50, 20),
                                                 (61, 30, 40, 20), (59, 30, 40, 20)):  # fmt: skip
        picture = Image.fromarray(rng.choice(np.array([0, 255], np.uint8), (height, width)))
        down_first = picture.resize((width, new_height), bicubic).resize((new_width, new_height), bicubic)
        is_down_first = np.array_equal(
            np.asarray(picture.resize((new_width, new_height), bicubic)), np.asarray(down_first)
        )
        sides = [jax.numpy.int32(side) for side in (height, width)]
        wanted = resizing._is_tall(sides, [jax.numpy.int32(side) for side in (new_height, new_width)])
        assert is_down_first == (resizing.pillow_may_go_down_first() and bool(wanted))


def test_filters_with_jumps_are_refused():
    with pytest.raises(ValueError, match="'nearest' cannot be done as Pillow does it"):
        resizing.prepare(jax.numpy.zeros((1, 8, 8, 3), np.uint8), Preprocess(size=4, interpolation="nearest"))
