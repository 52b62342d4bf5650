"""Nearest class mean: scikit-learn's where it has one, and a formula where it has none."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from tljax.features.nearest_mean import fit_class_means

RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=80)
FEATURES = (RNG.normal(size=(3, 6))[LABELS] + RNG.normal(size=(80, 6)) * np.arange(1, 7) + 2).astype(np.float32)


def test_euclidean_predictions_are_those_of_scikit_learn():
    fitted = fit_class_means(FEATURES, LABELS, 3, metric="euclidean", temperature=0.5)
    z = (FEATURES - FEATURES.mean(axis=0)) / FEATURES.std(axis=0)
    wanted = NearestCentroid().fit(z, LABELS)
    probabilities = fitted.predict_proba(FEATURES)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), wanted.predict(z))
    distances = np.square(z[:, None] - wanted.centroids_).mean(axis=2)
    powers = np.exp(-0.5 * distances / 0.5)
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


def test_cosine_compares_directions():
    fitted = fit_class_means(FEATURES, LABELS, 3, metric="cosine", temperature=0.1)
    rows = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    means = np.stack([rows[k == LABELS].mean(axis=0) for k in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    powers = np.exp(rows @ means.T / 0.1)
    got = fitted.predict_proba(FEATURES)
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(3 * FEATURES), got, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_class_without_rows_has_no_probability(metric):
    got = fit_class_means(FEATURES, LABELS, 5, metric=metric, temperature=0.1).predict_proba(FEATURES)
    np.testing.assert_array_equal(got[:, 3:], 0)
    without = fit_class_means(FEATURES, LABELS, 3, metric=metric, temperature=0.1).predict_proba(FEATURES)
    np.testing.assert_allclose(got[:, :3], without, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "cosin"}, r"no metric 'cosin' \(did you mean 'cosine'\?\)"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"labels": np.ones((80, 3), np.float32)}, "targets of several labels"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    given = {"labels": LABELS, "metric": "cosine", "temperature": 0.1, **changed}
    with pytest.raises(ValueError, match=message):
        fit_class_means(FEATURES, given.pop("labels"), 3, **given)
