"""Temperatures and calibration errors against independent ways to compute them."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.metrics import log_loss as sklearn_log_loss

from tljax import calibration
from tljax.calibration import SIGMOID, SOFTMAX, calibration_report, fit_temperature

N, K = 400, 5


def make(kind, temperature, seed=0):
    """Scores, and targets drawn from the probabilities that these have at a temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (N, K)).astype(np.float32)
    if kind == SIGMOID:
        return scores, (rng.random((N, K)) < expit(scores / temperature)).astype(np.float32)
    chosen = [rng.choice(K, p=row) for row in softmax(scores.astype(np.float64) / temperature, axis=1)]
    return scores, np.eye(K, dtype=np.float32)[chosen]


def negative_log_likelihood(scores, targets, kind, temperature):
    """From the definition, in float64."""
    scores = scores.astype(np.float64) / temperature
    if kind == SIGMOID:
        return (targets * np.logaddexp(0, -scores) + (1 - targets) * np.logaddexp(0, scores)).sum(axis=1).mean()
    return -(targets * np.log(softmax(scores, axis=1))).sum(axis=1).mean()


@pytest.mark.parametrize("kind", [SOFTMAX, SIGMOID])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_has_the_least_log_loss(kind, temperature):
    scores, targets = make(kind, temperature)
    # Soft labels too.
    for shares in (targets, 0.9 * targets + 0.1 * (0.5 if kind == SIGMOID else 1 / K)):
        found = fit_temperature(scores, shares.astype(np.float32), kind)
        wanted: Any = minimize_scalar(
            lambda log, shares=shares: negative_log_likelihood(scores, shares, kind, math.exp(log)),
            bounds=(-4, 4), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        assert found.problem is None
        # A minimum is known to the root of the spacing of numbers.
        assert found.temperature == pytest.approx(math.exp(wanted.x), rel=1e-6)
    assert fit_temperature(scores, targets, kind).temperature == pytest.approx(temperature, rel=0.15)


def test_scores_that_say_all_or_nothing_have_no_temperature():
    scores, _ = make(SOFTMAX, 1.0)
    right = np.eye(K, dtype=np.float32)[scores.argmax(axis=1)]
    wrong = np.eye(K, dtype=np.float32)[scores.argmin(axis=1)]
    for targets, words in ((right, "classified right"), (wrong, "say nothing")):
        found = fit_temperature(scores, targets, SOFTMAX)
        assert found.temperature is None
        assert words in str(found.problem)
    with pytest.raises(ValueError, match="got 0 images"):
        fit_temperature(scores[:0], right[:0], SOFTMAX)
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.full_like(scores, np.nan), right, SOFTMAX)


def by_hand(confidence, outcome, edges):
    """Guo et al. 2017, equations 2 and 3, one decision after the other."""
    error = 0.0
    for low, high in edges:
        members = [i for i in range(len(confidence)) if low < confidence[i] <= high]
        if members:
            accuracy = sum(outcome[i] for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            error += len(members) / len(confidence) * abs(accuracy - mean)
    return error


@pytest.mark.parametrize("kind", [SOFTMAX, SIGMOID])
def test_a_report_is_what_its_definitions_say(kind):
    scores, targets = make(kind, 2.0)
    report = calibration_report(scores, targets, kind, 1.7)
    scaled = scores.astype(np.float64) / 1.7
    if kind == SOFTMAX:
        p = softmax(scaled, axis=1)
        confidence, outcome = p.max(axis=1), (p.argmax(axis=1) == targets.argmax(axis=1)).astype(float)
        assert report["log_loss"] == pytest.approx(sklearn_log_loss(targets.argmax(axis=1), p))
    else:
        confidence, outcome = expit(scaled).ravel(), targets.ravel().astype(float)
    assert report["log_loss"] == pytest.approx(negative_log_likelihood(scores, targets, kind, 1.7))
    widths = [(i / 15, (i + 1) / 15) for i in range(15)]
    assert report["ece"] == pytest.approx(by_hand(confidence, outcome, widths), rel=1e-9)
    order = np.argsort(confidence)
    parts = np.array_split(order, 15)
    equal = sum(len(part) * abs(outcome[part].mean() - confidence[part].mean()) for part in parts) / len(order)
    assert report["ece_equal_mass"] == pytest.approx(equal, rel=1e-9)
    assert sum(part["count"] for part in report["bins"]) == len(confidence)


def test_bins_end_where_they_should_and_equal_decisions_stay_together():
    (first, last) = calibration.equal_width_bins(np.array([0.0, 1 / 15, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert (first["count"], first["share"], last["count"], last["confidence"]) == (2, 0.5, 1, 1.0)
    confidence, outcome = np.full(30, 0.8), np.repeat([1.0, 0.0], 15)
    rng = np.random.default_rng(0)
    for _ in range(3):
        bins = calibration.equal_mass_bins(confidence, rng.permutation(outcome))
        assert [part["share"] for part in bins] == pytest.approx([0.5] * 15)


def test_a_temperature_makes_test_images_better_calibrated_and_changes_no_class():
    scores, targets = make(SOFTMAX, 3.0)
    later = make(SOFTMAX, 3.0, seed=1)
    temperature = fit_temperature(scores, targets, SOFTMAX).temperature
    assert temperature is not None
    before, after = (calibration_report(*later, SOFTMAX, t) for t in (1.0, temperature))
    assert after["ece"] < before["ece"] / 2
    assert after["log_loss"] < before["log_loss"]
