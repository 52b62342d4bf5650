import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tljax.features.maps import check_tsne, pca_map, sample_rows, tsne_map

RNG = np.random.default_rng(0)
# Three groups of directions, of rows of all lengths.
GROUP = np.repeat(np.arange(3), 20)
GROUPED = (np.eye(3, 8)[GROUP] + 0.05 * RNG.normal(size=(60, 8))) * RNG.uniform(0.5, 5, (60, 1))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (2, 2)])
def test_pca_is_that_of_a_singular_value_decomposition(shape):
    features = RNG.normal(3, 2, shape).astype(np.float32)
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    points, shares = pca_map(features)
    signs = np.sign([row[np.abs(row).argmax()] for row in directions[:2]])
    num_real = min(2, shape[0] - 1)  # centred rows span one dimension less than there are rows
    wanted = centred @ directions[:2].T * signs
    assert_allclose(points[:, :num_real], wanted[:, :num_real], rtol=0, atol=1e-9)
    assert_allclose(points[:, num_real:], 0, atol=1e-6)
    assert_allclose(shares, sizes[:2] ** 2 / (sizes**2).sum(), rtol=0, atol=1e-12)


def test_the_signs_of_pca_are_those_of_the_features():
    features = RNG.normal(size=(30, 5))
    points, shares = pca_map(features)
    others, same = pca_map(-features)
    assert_allclose(others, -points, rtol=0, atol=1e-9)
    assert_allclose(same, shares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("features", [np.full((5, 4), 3.1), np.zeros((5, 4)), np.ones((1, 4)), np.ones((4, 1))])
def test_pca_refuses_what_has_no_directions(features):
    with pytest.raises(ValueError, match="are equal|at least 2 rows and 2 columns"):
        pca_map(features)


def test_tsne_keeps_groups_together_and_is_the_same_every_time():
    points = tsne_map(GROUPED, perplexity=5)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert_array_equal(GROUP[distances.argmin(axis=1)], GROUP)
    assert_array_equal(tsne_map(GROUPED, perplexity=5), points)
    # Lengths do not count; powers of two change no bit of a row of length 1.
    assert_array_equal(tsne_map(4 * GROUPED, perplexity=5), points)


def test_tsne_refuses_too_few_rows_and_says_how_to_get_scikit_learn(monkeypatch):
    check_tsne(31, 10)
    with pytest.raises(ValueError, match=r"t-SNE of 30 rows at perplexity 10.*can be 1 to 9\.7"):
        check_tsne(30, 10)
    with pytest.raises(ValueError, match="perplexity 20"):
        tsne_map(GROUPED, perplexity=20)
    with pytest.raises(ValueError, match=r"perplexity 0\.5"):
        check_tsne(30, 0.5)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"pip install 'tljax\[maps\]' or pip install scikit-learn"):
        check_tsne(31, 10)


def test_sampled_rows_have_the_proportions_of_the_classes():
    labels = np.repeat([0, 1, 2], [300, 150, 50])
    rows = sample_rows(labels, 100, seed=3)
    assert_array_equal(np.bincount(labels[rows]), [60, 30, 10])
    assert len(set(rows.tolist())) == 100
    assert np.any(np.diff(labels[rows]) < 0)  # not by class
    assert_array_equal(rows, sample_rows(labels, 100, seed=3))
    assert np.any(rows != sample_rows(labels, 100, seed=4))
    assert_array_equal(np.sort(sample_rows(labels, 500, seed=3)), np.arange(500))
    with pytest.raises(ValueError, match="limit of rows is 0"):
        sample_rows(labels, 0, seed=3)
