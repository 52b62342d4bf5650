"""Nearest neighbours: equal to scikit-learn's, whatever the blocks, and to a stated order where cosines are equal."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tljax.features import neighbours
from tljax.features.neighbours import Neighbours, nearest, votes

RNG = np.random.default_rng(0)
KEYS = RNG.normal(size=(150, 8)).astype(np.float32) + 1
QUERIES = RNG.normal(size=(70, 8)).astype(np.float32) + 1
LABELS = RNG.integers(3, size=150).astype(np.int32)


def reference(keys, queries, count):
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(keys.astype(np.float64))
    distances, positions = search.kneighbors(queries.astype(np.float64))
    return 1 - distances, positions


@pytest.mark.parametrize(("query_rows", "key_rows"), [(1024, 4096), (64, 64)])
@pytest.mark.parametrize("count", [1, 5, 100])
def test_find_what_scikit_learn_finds(monkeypatch, query_rows, key_rows, count):
    monkeypatch.setattr(neighbours, "_QUERIES", query_rows)
    monkeypatch.setattr(neighbours, "_KEYS", key_rows)
    cosines, positions = nearest(KEYS, QUERIES, count)
    wanted_cosines, wanted = reference(KEYS, QUERIES, count)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_allclose(cosines, wanted_cosines, atol=1e-6)


def test_of_equal_cosines_the_lower_rows_come_first(monkeypatch):
    monkeypatch.setattr(neighbours, "_KEYS", 64)
    # Powers of two: the cosines are equal to the last bit. Rows 3, 70 and 140 are in different blocks.
    keys = np.tile(np.array([[1, 0]], np.float32), (150, 1))
    keys[[140, 3, 70]] = [[0, 2], [0, 4], [0, 1]]
    _, positions = nearest(keys, np.array([[0, 1], [2, 0]], np.float32), 5)
    assert positions.tolist() == [[3, 70, 140, 0, 1], [0, 1, 2, 4, 5]]


def test_rows_of_zeros_are_as_far_as_a_right_angle():
    cosines, positions = nearest(np.array([[0, 0], [-1, 0], [1, 0]], np.float32), np.array([[3, 0]], np.float32), 3)
    assert positions.tolist() == [[2, 0, 1]]
    np.testing.assert_array_equal(cosines, [[1, 0, -1]])


@pytest.mark.parametrize(("temperature", "weigh"), [(0.07, lambda d: np.exp((1 - d) / 0.07)), (np.inf, "uniform")])
def test_votes_are_those_of_scikit_learn(monkeypatch, temperature, weigh):
    monkeypatch.setattr(neighbours, "_QUERIES", 64)
    voter = KNeighborsClassifier(n_neighbors=6, metric="cosine", weights=weigh).fit(KEYS.astype(np.float64), LABELS)
    knn = Neighbours(features=KEYS, labels=LABELS, num_classes=3, count=6, temperature=temperature)
    np.testing.assert_allclose(knn.predict_proba(QUERIES), voter.predict_proba(QUERIES.astype(np.float64)), atol=1e-5)


def test_votes_for_labels_are_shares_of_the_rows_that_have_them():
    targets = RNG.integers(2, size=(150, 5)).astype(np.float32)
    cosines, positions = nearest(KEYS, QUERIES, 4)
    got = votes(cosines, positions, targets, 5, np.inf)
    np.testing.assert_allclose(got, targets[positions].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("count", [0, 151])
def test_neighbours_that_are_not_there_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} neighbours wanted of 150 rows"):
        nearest(KEYS, QUERIES, count)
