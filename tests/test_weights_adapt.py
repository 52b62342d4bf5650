"""Adaptation: other sizes, channels, patches and classes, against the projects whose rules they are."""

from typing import Any

import numpy as np
import pytest
import scipy.ndimage

from tests.golden.record import FOLDER
from tljax.weights import adapt, resample

with np.load(FOLDER / "resample.npz") as file:
    RECORDED = dict(file)
GRIDS = sorted(key.removesuffix(":input") for key in RECORDED if key.endswith(":input") and "patch" not in key)
PATCHES = sorted(key for key in RECORDED if key.startswith("patch") and not key.endswith(":input"))


def pair(text):
    rows, columns = text.split("x")
    return int(rows), int(columns)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("method", ["cubic", "antialiased_cubic"])
def test_positions_are_resampled_as_torch_and_timm_do(name, method):
    """5e-6: torch computes the coordinates in float32, we in float64."""
    grid, new_grid = map(pair, name.split("_"))
    got = resample.resample_positions(RECORDED[f"{name}:input"], grid, new_grid, 2, method)
    np.testing.assert_array_equal(got[:, :2], RECORDED[f"{name}:input"][:, :2])
    np.testing.assert_allclose(got, RECORDED[f"{name}:{method}"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("grid", "new_grid"), [((7, 7), (12, 12)), ((14, 14), (5, 5)), ((4, 6), (8, 3))])
def test_positions_of_big_vision_are_zoomed_as_scipy_does(grid, new_grid):
    """big_vision/models/vit.py, resample_posemb: scipy.ndimage.zoom of order 1."""
    positions = np.random.default_rng(0).normal(size=(1, 1 + grid[0] * grid[1], 4)).astype(np.float32)
    zoom = (new_grid[0] / grid[0], new_grid[1] / grid[1], 1)
    wanted: Any = scipy.ndimage.zoom(positions[0, 1:].reshape(*grid, 4), zoom, order=1)
    got = resample.resample_positions(positions, grid, new_grid, 1, "zoom")
    np.testing.assert_allclose(got[0, 1:].reshape(wanted.shape), wanted, rtol=0, atol=1e-6)


def test_positions_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match="48 position embeddings are no grid of 7 x 7"):
        resample.resample_positions(np.zeros((1, 49, 4), np.float32), (7, 7), (4, 4), 1, "cubic")
    with pytest.raises(ValueError, match=r"no way to resample called 'cubik' \(did you mean 'cubic'"):
        resample.resample_positions(np.zeros((1, 50, 4), np.float32), (7, 7), (4, 4), 1, "cubik")


@pytest.mark.parametrize("name", PATCHES)
def test_patch_kernels_are_resampled_as_timm_does(name):
    """1e-4: timm inverts the resize matrix in float32."""
    kernel, wanted = RECORDED[f"{name}:input"], RECORDED[name]
    got = resample.resample_patches(kernel.transpose(2, 3, 1, 0), wanted.shape[-1])  # o i h w -> h w i o
    np.testing.assert_allclose(got.transpose(3, 2, 0, 1), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_an_embedding_survives_a_larger_patch():
    """FlexiViT, equation 3: a patch resized up has the embedding that it had."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(8, 8, 1, 5)), rng.normal(size=(8, 8))
    matrix = resample.antialiased_cubic(8, 12)
    resized = matrix @ patch @ matrix.T
    got = np.einsum("hw,hwio->o", resized, resample.resample_patches(kernel, 12))
    np.testing.assert_allclose(got, np.einsum("hw,hwio->o", patch, kernel), rtol=1e-9)


def test_channels():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(3, 3, 1)).astype(np.float32)
    out = lambda image, weights: np.einsum("hwi,hwio->o", image, weights)  # noqa: E731
    wanted = out(np.repeat(grey, 3, axis=2), kernel)
    np.testing.assert_allclose(out(grey, adapt.adapt_channels(kernel, 1)), wanted, rtol=1e-5)
    six = adapt.adapt_channels(kernel, 6)
    np.testing.assert_allclose(out(np.repeat(grey, 6, axis=2), six), wanted, rtol=1e-5)
    np.testing.assert_array_equal(six[:, :, 4], six[:, :, 1])
    assert adapt.adapt_channels(kernel, 3) is kernel


def test_heads_start_as_asked():
    shapes = {"head/linear/kernel": (400, 50), "head/linear/bias": (50,)}
    zeros = adapt.NewHead().arrays(shapes)
    assert not zeros["head/linear/kernel"].any()
    assert not zeros["head/linear/bias"].any()
    normal = adapt.NewHead(init="truncated_normal", seed=3).arrays(shapes)["head/linear/kernel"]
    # A normal that is cut at two standard deviations keeps 0.88 of one.
    assert abs(normal.std() - 0.88 * 0.02) < 2e-4
    assert 0.0399 < abs(normal).max() <= 0.04
    assert abs(adapt.NewHead(init="scaled").arrays(shapes)["head/linear/kernel"].std() - 400**-0.5) < 1e-3
    again = adapt.NewHead(init="truncated_normal", seed=3).arrays(shapes)["head/linear/kernel"]
    np.testing.assert_array_equal(normal, again)
    assert not np.array_equal(normal, adapt.NewHead(init="truncated_normal").arrays(shapes)["head/linear/kernel"])


def test_bias_starts_at_the_class_priors():
    bias = adapt.NewHead(class_priors=(6.0, 3.0, 1.0)).arrays({"head/linear/bias": (3,)})["head/linear/bias"]
    np.testing.assert_allclose(np.exp(bias), [0.6, 0.3, 0.1], rtol=1e-6)
    with pytest.raises(ValueError, match="2 class_priors for 3 classes"):
        adapt.NewHead(class_priors=(0.5, 0.5)).arrays({"head/linear/bias": (3,)})
    with pytest.raises(ValueError, match="wanted shares above 0"):
        adapt.NewHead(class_priors=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"head init 'zeroes' is not known \(did you mean 'zeros'"):
        adapt.NewHead(init="zeroes")


def test_classes_are_chosen_by_name():
    names = ("cat", "dog", "crane", "crane")
    assert adapt.class_indices(names, ["dog", "cat"]) == [1, 0]
    with pytest.raises(ValueError, match=r"no class 'dogs' \(did you mean 'dog'\?\), 'fish'; it has 4"):
        adapt.class_indices(names, ["dogs", "fish", "cat"])
    with pytest.raises(ValueError, match="'crane' are there more than once"):
        adapt.class_indices(names, ["crane"])
    with pytest.raises(ValueError, match="does not name its classes"):
        adapt.class_indices(None, ["cat"])
