"""Ridge regression: scikit-learn's optimum, and leave-one-out errors of as many fits."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tljax.features.ridge import fit_ridge_path

STRENGTHS = (10.0, 1e-1, 1e-4)
SHAPES = pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 45)])


def make_data(n, d):
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=n).astype(np.int32)
    features = rng.normal(size=(3, d))[labels] + rng.normal(size=(n, d)) * np.arange(1, d + 1) + 3
    return features.astype(np.float32), labels, rng.uniform(0.5, 2, n)


def standardised(path, features):
    return (features - path.mean) / path.scale


def reference(z, targets, weights, strength):
    shares = weights / weights.mean()
    return Ridge(alpha=strength * len(z), solver="cholesky").fit(z.astype(np.float64), targets, sample_weight=shares)


@SHAPES
def test_weights_are_those_of_scikit_learn(monkeypatch, n, d):
    monkeypatch.setattr("tljax.features.ridge._BLOCK", 7)
    features, labels, weights = make_data(n, d)
    path = fit_ridge_path(features, labels, 3, STRENGTHS, weights=weights)
    for strength, solved, intercepts in zip(path.strengths, path.weights, path.intercepts, strict=True):
        wanted = reference(standardised(path, features), np.eye(3)[labels], weights, strength)
        np.testing.assert_allclose(solved, wanted.coef_.T, atol=1e-9)
        np.testing.assert_allclose(intercepts, wanted.intercept_, atol=1e-9)


@SHAPES
def test_leave_one_out_errors_are_those_of_fits_without_the_row(n, d):
    features, labels, weights = make_data(n, d)
    path = fit_ridge_path(features, labels, 3, STRENGTHS, weights=weights)
    z, targets = standardised(path, features).astype(np.float64), np.eye(3)[labels]
    for strength, error in zip(path.strengths, path.leave_one_out_errors, strict=True):
        losses = []
        for row in range(n):
            kept = np.arange(n) != row
            # The strength is of the sum over all rows: it does not shrink with the row.
            model = Ridge(alpha=strength * weights.sum(), solver="cholesky")
            model.fit(z[kept], targets[kept], sample_weight=weights[kept])
            losses.append(np.square(model.predict(z[row : row + 1]) - targets[row]).mean())
        assert error == pytest.approx(np.average(losses, weights=weights), rel=1e-7), strength


def test_probabilities_rank_as_the_regression_and_their_sharpness_is_the_best():
    features, labels, weights = make_data(40, 6)
    path = fit_ridge_path(features, labels, 3, STRENGTHS, weights=weights)
    z = standardised(path, features)
    raw = z @ path.weights[1] + path.intercepts[1]
    got = path.at(1).predict_proba(features)
    powers = np.exp(path.sharpness[1] * raw)
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    # Leave-one-out regressions by fits of their own.
    alone = np.stack(
        [
            Ridge(alpha=STRENGTHS[1] * weights.sum(), solver="cholesky")
            .fit(np.delete(z, row, 0), np.delete(np.eye(3)[labels], row, 0), sample_weight=np.delete(weights, row))
            .predict(z[row : row + 1])[0]
            for row in range(40)
        ]
    )

    def loss(sharpness):
        powers = np.exp(sharpness * alone)
        return -np.average(np.log((powers / powers.sum(axis=1, keepdims=True))[np.arange(40), labels]), weights=weights)

    best = path.sharpness[1]
    assert loss(best) < min(loss(0.98 * best), loss(1.02 * best))


def test_labels_are_regressions_of_their_own():
    features, _, _ = make_data(40, 6)
    targets = np.random.default_rng(2).integers(2, size=(40, 4)).astype(np.float32)
    path = fit_ridge_path(features, targets, 4, STRENGTHS)
    z = standardised(path, features)
    wanted = reference(z, targets, np.ones(40), STRENGTHS[1])
    raw = wanted.predict(z)
    got = path.at(1).predict_proba(features)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-path.sharpness[1] * (2 * raw - 1))), atol=1e-5)


@pytest.mark.parametrize(("strengths", "n"), [((), 9), ((1.0, 0.0), 9), ((1.0,), 1)])
def test_what_cannot_be_fitted_is_refused(strengths, n):
    features, labels, _ = make_data(n, 3)
    with pytest.raises(ValueError, match="wanted one or more positive numbers; examples are"):
        fit_ridge_path(features, labels, 3, strengths)
