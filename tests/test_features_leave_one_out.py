"""Leave-one-out against fits that leave one out."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.test_features_scores import make
from tljax.features import leave_one_out
from tljax.features.leave_one_out import knn_accuracy, ridge_accuracy

GROUPS = np.repeat(np.arange(12), 5)


def held_out(n, groups):
    own = np.arange(n) if groups is None else groups
    return [np.flatnonzero(own == one) for one in np.unique(own)]


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("d", [6, 80])
def test_ridge_is_the_fits_without_each_row_or_group(d, groups, monkeypatch):
    features, labels = make(60, d, 3, shift=0.4)
    strengths = [1e-3, 0.1, 3.0]
    z = (features - features.mean(axis=0)) / features.std(axis=0)
    targets = np.eye(3)[labels]
    found = {}
    for strength in strengths:
        predicted = np.empty_like(targets)
        for out in held_out(60, groups):
            kept = np.setdiff1d(np.arange(60), out)
            # The penalty stays that of all rows.
            fit = Ridge(alpha=strength * 60, solver="svd").fit(z[kept], targets[kept])
            predicted[out] = fit.predict(z[out])
        found[strength] = predicted
    best = min(strengths, key=lambda strength: ((targets - found[strength]) ** 2).sum())
    wanted = (found[best].argmax(axis=1) == labels).mean()
    assert 0.3 < wanted < 1
    assert ridge_accuracy(features, labels, strengths=strengths, groups=groups) == wanted
    left_out = leave_one_out._left_out

    def compared(*given):
        errors = left_out(*given)
        np.testing.assert_allclose(targets - errors, found[given[3]], atol=1e-4)  # the scale is in float32
        return errors

    monkeypatch.setattr(leave_one_out, "_left_out", compared)
    ridge_accuracy(features, labels, strengths=strengths, groups=groups)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("neighbours", [1, 4, 7])
def test_neighbours_are_the_most_alike_of_the_others(groups, neighbours, monkeypatch):
    monkeypatch.setattr(leave_one_out, "_BLOCK", 25)
    features, labels = make(60, 5, 3)
    cosines = features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    num_hits = 0
    for out in held_out(60, groups):
        for row in out:
            others = sorted(set(range(60)) - set(out), key=lambda other: -cosines[row, other])[:neighbours]
            votes = [labels[other] for other in others]
            # Most votes, then the nearest voter.
            num_hits += max(votes, key=lambda one: (votes.count(one), -votes.index(one))) == labels[row]
    assert 20 < num_hits < 60
    assert knn_accuracy(features, labels, neighbours=neighbours, groups=groups) == num_hits / 60


def test_what_cannot_be_left_out_is_refused():
    features, labels = make(60, 5, 3)
    with pytest.raises(ValueError, match="neighbours is 56, wanted 1 to 55"):
        knn_accuracy(features, labels, neighbours=56, groups=GROUPS)
    with pytest.raises(ValueError, match="wanted positive numbers"):
        ridge_accuracy(features, labels, strengths=[1.0, 0.0])
