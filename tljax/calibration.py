"""How far probabilities can be taken at their word, and the one number that mends them.

Scores are divided by a temperature before they become probabilities. It changes how sure a net is, and never which
class comes first.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

SOFTMAX, SIGMOID = "softmax", "sigmoid"
# Decisions that claim about the same: their "count", mean "confidence", and the "share" that came true.
Bin = dict[str, int | float]

NUM_BINS = 15  # as in Guo et al. 2017, section 5
# Beyond these the scores say next to nothing, or are next to certain.
_LEAST, _GREATEST = 1e-2, 1e2


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A temperature, or why there is none.

    Args:
        temperature: None where the log loss has no least value between 0.01 and 100.
        problem: why, as a clause; None where there is a temperature.
    """

    temperature: float | None
    problem: str | None


def fit_temperature(scores: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], kind: str) -> Fit:
    """Find the temperature with the least log loss.

    The log loss is convex in the inverse of the temperature, so its least value is where its slope is zero.

    Args:
        scores: of a net, before softmax or sigmoid.
        targets: shares of the classes, or of each label on its own, from 0 to 1.
        kind: "softmax" or "sigmoid".

    Raises:
        ValueError: there are no examples, or scores that are not finite.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2; for independent labels, the same with a sigmoid.
    """
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"a temperature is fitted to finite scores of at least one image, got {len(scores)} images")
    from scipy.optimize import brentq

    scores, targets = scores.astype(np.float64), targets.astype(np.float64)

    def slope(log_inverse: float) -> float:
        probabilities = to_probabilities(scores * math.exp(log_inverse), kind)
        return float(((probabilities - targets) * scores).mean())

    low, high = -math.log(_GREATEST), -math.log(_LEAST)
    if slope(low) >= 0:
        return Fit(temperature=None, problem="the scores of the validation images say nothing about their labels")
    if slope(high) <= 0:
        problem = (
            f"the log loss falls down to temperature {_LEAST}, as where all validation images are classified right"
        )
        return Fit(temperature=None, problem=problem)
    return Fit(temperature=math.exp(-brentq(slope, low, high, xtol=1e-12)), problem=None)  # pyright: ignore


def to_probabilities(scores: Float[np.ndarray, "n k"], kind: str) -> Float[np.ndarray, "n k"]:
    """Return the probabilities of scores, in the precision that these have."""
    from scipy.special import expit, softmax

    return expit(scores) if kind == SIGMOID else softmax(scores, axis=1)


def calibration_report(
    scores: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], kind: str, temperature: float = 1.0
) -> dict[str, Any]:
    """Measure probabilities at a temperature.

    Returns:
        "log_loss", the mean over images (of independent labels, the sum over them); "ece" and "ece_equal_mass", see
        `expected_calibration_error`; and "bins", those of equal width that are not empty: "count", "confidence" and
        "share".
    """
    scores = scores.astype(np.float64) / temperature
    confidence, outcome = decisions(to_probabilities(scores, kind), targets, kind)
    bins = equal_width_bins(confidence, outcome)
    return {
        "log_loss": _log_loss(scores, targets.astype(np.float64), kind),
        "ece": expected_calibration_error(bins),
        "ece_equal_mass": expected_calibration_error(equal_mass_bins(confidence, outcome)),
        "bins": bins,
    }


def _log_loss(scores: np.ndarray, targets: np.ndarray, kind: str) -> float:
    from scipy.special import log_expit, log_softmax

    if kind == SIGMOID:
        losses = -targets * log_expit(scores) - (1 - targets) * log_expit(-scores)
    else:
        losses = -targets * log_softmax(scores, axis=1)
    return float(losses.sum(axis=1).mean())


def decisions(
    probabilities: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what was claimed, and what came true: a number each for every decision.

    Classes that exclude each other make one decision an image: the probability of the first class, and the share that
    this class has in the targets, 1 or 0 for plain labels. Independent labels make one each: the probability of the
    label, and its target.
    """
    if kind == SIGMOID:
        return probabilities.reshape(-1), targets.reshape(-1).astype(np.float64)
    first = probabilities.argmax(axis=1)
    rows = np.arange(len(first))
    return probabilities[rows, first], targets[rows, first].astype(np.float64)


def equal_width_bins(confidence: np.ndarray, outcome: np.ndarray, count: int = NUM_BINS) -> list[Bin]:
    """Group decisions by the parts of equal width from 0 to 1, each without its lower end; empty parts are left out."""
    place = np.clip(np.ceil(confidence * count).astype(np.int64) - 1, 0, count - 1)
    return [_bin(confidence[place == part], outcome[place == part]) for part in np.unique(place)]


def equal_mass_bins(confidence: np.ndarray, outcome: np.ndarray, count: int = NUM_BINS) -> list[Bin]:
    """Group decisions into parts of equal number, from the least sure to the surest.

    Decisions of one confidence have the mean of their outcomes each, so that their order does not matter.
    """
    order = np.argsort(confidence, kind="stable")
    confidence, outcome = confidence[order], outcome[order]
    _, group = np.unique(confidence, return_inverse=True)
    means = np.bincount(group, weights=outcome) / np.bincount(group)
    parts = zip(np.array_split(confidence, count), np.array_split(means[group], count), strict=True)
    return [_bin(*part) for part in parts if len(part[0])]


def _bin(confidence: np.ndarray, outcome: np.ndarray) -> Bin:
    return {"count": len(confidence), "confidence": float(confidence.mean()), "share": float(outcome.mean())}


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean distance between what was claimed and what came true, a bin by its number of decisions.

    Source:
        Guo et al. 2017, arXiv:1706.04599, equation 3; with bins of equal number, Nixon et al. 2019, arXiv:1904.01685.
    """
    total = sum(part["count"] for part in bins)
    return sum(part["count"] * abs(part["share"] - part["confidence"]) for part in bins) / total
