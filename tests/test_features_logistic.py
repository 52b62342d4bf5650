"""Logistic regression: the float64 optimum of scikit-learn, at every strength, from float32."""

import logging

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tljax.features.linear import standardisation
from tljax.features.logistic import choose_strength, fit_path

STRENGTHS = (1.0, 1e-2, 1e-4, 1e-6)


def make_data(n, d, num_classes, seed=0):
    """Features of unequal spread and offset, with part of the class in them."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=n - num_classes)])
    spread = np.arange(1, d + 1) ** -0.7
    centres = rng.normal(size=(num_classes, d))
    features = (centres[labels] + 2 * rng.normal(size=(n, d))) * spread @ rng.normal(size=(d, d)) + 3 * rng.normal(
        size=d
    )
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


# Other tests keep to the shapes of these, which are compiled.
@pytest.mark.parametrize(
    ("n", "d", "num_classes"), [(250, 20, 2), (250, 20, 4), (250, 20, 10), (50, 120, 2), (50, 120, 4)]
)
def test_reach_the_optimum(n, d, num_classes):
    assert_optimal(*make_data(n, d, num_classes), num_classes)


def test_collinear_and_constant_features():
    features, labels = make_data(250, 10, 4)
    mixed = features @ np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    constant = np.full((250, 1), 0.1, np.float32)
    features = np.concatenate([features, features[:, :5], mixed, constant], axis=1)
    assert_optimal(features, labels, 4)


def test_one_weak_strength_alone_reaches_the_optimum():
    assert_optimal(*make_data(250, 20, 4), 4, strengths=(1e-6,))


def test_strengths_come_strongest_first_and_standardise_the_training_rows():
    features, labels = make_data(250, 20, 4)
    path = fit_path(features, labels, 4, (1e-3, 1.0, 1e-1))
    assert path.strengths == (1.0, 1e-1, 1e-3)
    assert (np.diff(np.square(path.weights).sum(axis=(1, 2))) > 0).all()
    np.testing.assert_allclose(path.mean, features.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(path.scale, features.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn(num_classes):
    features, labels = make_data(300, 20, num_classes)
    train, test = slice(0, 250), slice(250, None)
    path = fit_path(features[train], labels[train], num_classes, (1e-2,))
    z = (features.astype(np.float64) - path.mean) / path.scale
    fitted = LogisticRegression(C=1 / (1e-2 * 250), tol=1e-10, max_iter=10_000).fit(z[train], labels[train])
    # A fit is sure of its objective to 1e-7, so of its params to the root of that.
    np.testing.assert_allclose(path.predict_proba(features[test])[0], fitted.predict_proba(z[test]), atol=1e-3)


def test_class_without_examples_gets_no_probability():
    features, labels = make_data(250, 20, 4)
    probabilities = fit_path(features, labels, 10, STRENGTHS).predict_proba(features)
    assert probabilities[..., 4:].max() < 1e-5
    without = fit_path(features, labels, 4, STRENGTHS).predict_proba(features)
    np.testing.assert_allclose(probabilities[..., :4], without, atol=2e-3)


def test_a_single_class_is_certain():
    features, _ = make_data(250, 20, 2)
    path = fit_path(features, np.zeros(250, int), 2, STRENGTHS)
    np.testing.assert_allclose(path.predict_proba(features)[..., 0], 1, atol=1e-5)


def test_standardisation_leaves_constant_features_alone():
    column = np.full(1000, 0.1, np.float32)
    mean, scale = standardisation(np.stack([column, np.arange(1000, dtype=np.float32)], axis=1))
    np.testing.assert_array_equal(scale[0], 1)
    np.testing.assert_allclose(mean, [0.1, 499.5], rtol=1e-6)


def test_features_that_are_not_finite_are_refused():
    features, labels = make_data(20, 5, 2)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 5 features are not finite, the first is column 2"):
        fit_path(features, labels, 2, STRENGTHS)


@pytest.mark.parametrize("strengths", [(), (1.0, 0.0), (float("nan"),)])
def test_strengths_that_are_not_positive_are_refused(strengths):
    with pytest.raises(ValueError, match="wanted one or more positive numbers"):
        fit_path(*make_data(20, 5, 2), 2, strengths)


def test_folds_of_about_one_size_compile_once(caplog):
    features, labels = make_data(250, 20, 2)
    fit_path(features, labels, 2, STRENGTHS)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        fit_path(features[:200], labels[:200], 2, STRENGTHS[:1])
    assert not [record for record in caplog.records if "Compiling jit(solve)" in record.getMessage()]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        fit_path(features[:60], labels[:60], 2, STRENGTHS)
    assert [record for record in caplog.records if "Compiling jit(solve)" in record.getMessage()]


def make_folds(n, k):
    held_out = [np.arange(n)[fold::k] for fold in range(k)]
    return [(np.setdiff1d(np.arange(n), rows), rows) for rows in held_out]


def test_choose_the_lowest_mean_held_out_loss():
    features, labels = make_data(375, 20, 4, seed=9)  # where one fold alone would choose another
    strengths = (1e-4, 10.0, 1e-1, 1e-2, 1.0, 1e-3)
    folds = make_folds(375, 3)
    losses = []
    for strength in strengths:
        one = []
        for train, held_out in folds:
            path = fit_path(features[train], labels[train], 4, (strength,))
            one.append(-np.log(path.predict_proba(features[held_out])[0][np.arange(125), labels[held_out]]).mean())
        losses.append(np.mean(one))
    chosen = choose_strength(features, labels, 4, folds, strengths)
    assert chosen == strengths[int(np.argmin(losses))]
    assert chosen not in (10.0, 1e-4)  # or the test would say little


def test_of_equally_good_strengths_the_strongest_is_chosen(caplog):
    # Features that say nothing leave the same fit at every strength.
    features, labels = np.ones((500, 20), np.float32), np.arange(500) // 2 % 2
    assert choose_strength(features, labels, 2, make_folds(500, 2), (1e-3, 1.0, 1e-1)) == 1.0
    assert "strength 1 is at an end of the 3 tried, 1 to 0.001" in caplog.text


def test_no_folds_are_refused():
    with pytest.raises(ValueError, match="no folds"):
        choose_strength(*make_data(20, 5, 2), 2, [], STRENGTHS)
