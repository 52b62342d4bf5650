"""Logistic regression: the float64 optimum of scikit-learn, at every strength, from float32."""

import logging
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tljax.features.logistic import choose_strength, fit_path, standardisation
from tljax.features.logistic_solver import solve

STRENGTHS = (1.0, 1e-2, 1e-4, 1e-6)


def make_data(n, d, num_classes, seed=0):
    """Features of unequal spread and offset, with part of the class in them."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=n - num_classes)])
    spread = np.arange(1, d + 1) ** -0.7
    centres = rng.normal(size=(num_classes, d))
    features = (centres[labels] + 2 * rng.normal(size=(n, d))) * spread @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d)
    return features.astype(np.float32), labels


def objective(z, labels, weights, intercepts, strength):
    scores = z @ weights.astype(np.float64) + intercepts
    top = scores.max(axis=1)
    losses = top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - scores[np.arange(len(labels)), labels]
    return losses.mean() + strength / 2 * (weights.astype(np.float64) ** 2).sum()


def reference(z, labels, strength):
    """Return weights and intercepts of scikit-learn's optimum, as columns per class."""
    fitted = LogisticRegression(C=1 / (strength * len(z)), tol=1e-10, max_iter=100_000, solver="newton-cg")
    fitted.fit(z, labels)
    weights, intercepts = fitted.coef_.T, fitted.intercept_
    if weights.shape[1] == 1:
        weights, intercepts = np.pad(weights, ((0, 0), (1, 0))), np.pad(intercepts, (1, 0))
    return weights, intercepts


def assert_optimal(features, labels, num_classes, strengths=STRENGTHS):
    path = fit_path(features, labels, num_classes, strengths)
    z = (features.astype(np.float64) - path.mean) / path.scale
    for strength, weights, intercepts in zip(path.strengths, path.weights, path.intercepts, strict=True):
        wanted = objective(z, labels, *reference(z, labels, strength), strength)
        assert objective(z, labels, weights, intercepts, strength) == pytest.approx(wanted, rel=1e-5), strength


@pytest.mark.parametrize("num_classes", [2, 4, 10])
@pytest.mark.parametrize(("n", "d"), [(300, 20), (50, 120)])
def test_reach_the_optimum(n, d, num_classes):
    assert_optimal(*make_data(n, d, num_classes), num_classes)
