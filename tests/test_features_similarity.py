import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tljax.features.similarity import nearest_images, patch_similarity, split_tokens, unit_rows

RNG = np.random.default_rng(0)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_nearest_images_against_all_pairs():
    features = RNG.normal(size=(25, 6)).astype(np.float32)
    queries = np.array([3, 24, 0])
    found, cosines = nearest_images(features, queries, 4)
    for query, row, near in zip(queries, found, cosines, strict=True):
        of_all = {other: cosine(features[query], features[other]) for other in range(25) if other != query}
        wanted = sorted(of_all, key=lambda other: -of_all[other])[:4]
        assert row.tolist() == wanted
        assert_allclose(near, [of_all[other] for other in wanted], rtol=0, atol=1e-6)


def test_an_image_is_not_its_own_neighbour_even_among_copies():
    features = np.ones((4, 3), np.float32)
    found, cosines = nearest_images(features, np.array([0, 2]), 3)
    assert found.tolist() == [[1, 2, 3], [0, 1, 3]]
    assert_allclose(cosines, 1, rtol=1e-6)
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} neighbours of an image among 4, wanted 1 to 3"):
            nearest_images(features, np.array([0]), count)


def test_patch_similarity_is_the_cosine_with_every_patch():
    grid = RNG.normal(size=(3, 5, 8)).astype(np.float32)
    found = patch_similarity(grid, grid[1, 4])
    wanted = [[cosine(grid[row, column], grid[1, 4]) for column in range(5)] for row in range(3)]
    assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert_array_equal(unit_rows(np.zeros((2, 3))), np.zeros((2, 3)))


def test_tokens_become_a_grid_of_the_proportions_of_the_image():
    tokens = RNG.normal(size=(13, 4))
    grid, class_token = split_tokens(tokens, 1, (64, 48))
    assert grid.shape == (4, 3, 4)
    assert_array_equal(grid[2, 1], tokens[1 + 2 * 3 + 1])
    assert class_token is not None
    assert_array_equal(class_token, tokens[0])
    assert split_tokens(tokens[1:], 0, (48, 64))[0].shape == (3, 4, 4)
    assert split_tokens(tokens[1:], 0, (48, 64))[1] is None
    feature_map = tokens[1:].reshape(2, 6, 4)
    assert split_tokens(feature_map, 0, (32, 96))[0] is feature_map
    with pytest.raises(ValueError, match="has no patches; name a stage before"):
        split_tokens(np.ones(4), 0, (64, 64))
    with pytest.raises(ValueError, match="13 patches fill no grid"):
        split_tokens(tokens, 0, (64, 64))
