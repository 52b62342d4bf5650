"""Accuracy with each example, or each group of examples, held out in turn, without fitting that often.

In float64 on the host. Neighbours cost n^2 d multiply-adds in blocks of rows; ridge one spectrum,
then n m k a strength for m = min(n, d), and g^2 m + g^3 for each group of g rows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, Shaped

from tljax.features.linear import standardisation
from tljax.features.spectrum import left_spectrum

# Of the identity to the mean variance of the standardised features.
RIDGE_STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 4, 17))
# Rows whose similarities to all rows are held at once.
_BLOCK = 1024


def knn_accuracy(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    *,
    neighbours: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> float:
    """Return the share of rows whose class most of the nearest other rows by cosine have.

    Args:
        features: a row per example.
        labels: positions of the classes.
        neighbours: that vote; of classes with equal votes wins that of the nearest row.
        groups: given, rows of a row's own group do not vote.

    Raises:
        ValueError: a row has fewer others than `neighbours`.
    """
    n, own = len(features), np.arange(len(features)) if groups is None else np.unique(groups, return_inverse=True)[1]
    most = n - int(np.bincount(own).max())
    if not 1 <= neighbours <= most:
        raise ValueError(f"neighbours is {neighbours}, wanted 1 to {most}, the rows that are not held out together")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = np.asarray(features, np.float64) / np.maximum(lengths, np.finfo(np.float32).tiny)
    num_hits = 0
    for start in range(0, n, _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = units[block] @ units.T
        cosines[own[block, None] == own] = -np.inf
        near = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
        order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1, kind="stable")
        voters = labels[np.take_along_axis(near, order, axis=1)]
        num_hits += int((_winners(voters, int(labels.max()) + 1) == labels[block]).sum())
    return num_hits / n


def _winners(voters: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the class with most votes in each row of classes, nearest first."""
    is_for = voters[:, :, None] == np.arange(num_classes)  # row voter class
    # Less than a vote for coming late; a class without a voter comes first, and has no vote.
    return (is_for.sum(axis=1) - is_for.argmax(axis=1) / (voters.shape[1] + 1)).argmax(axis=1)


def ridge_accuracy(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    *,
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> float:
    """Return the share of rows that ridge regression of one-hot labels, fitted without them, puts in their class.

    The strength is the one of least squared error of the same held-out predictions, so the value is a little too
    high, alike for all features. Mean and scale are those of all rows.

    Args:
        features: a row per example; they are standardised, and the intercept is not penalised.
        labels: positions of the classes.
        strengths: to choose from, relative to n: the penalty is strength * n * |w|^2.
        groups: given, whole groups are held out.

    Raises:
        ValueError: features that are not finite, or a strength that is not positive.

    Source:
        Allen 1974, Technometrics 16, 125-127 (PRESS); with groups, the same with a block of the hat matrix for its
        diagonal.
    """
    if not min(strengths) > 0:
        raise ValueError(f"strengths are {list(strengths)}, wanted positive numbers")
    mean, scale = (part.astype(np.float64) for part in standardisation(features))
    left, squares = left_spectrum((features - mean) / scale)
    targets = np.eye(int(labels.max()) + 1)[labels]
    errors = [_left_out(left, squares / len(labels), targets, strength, groups) for strength in strengths]
    best = min(errors, key=lambda error: float((error**2).sum()))
    return float(((targets - best).argmax(axis=1) == labels).mean())


def _left_out(
    left: np.ndarray, variances: np.ndarray, targets: np.ndarray, strength: float, groups: np.ndarray | None
) -> np.ndarray:
    """Return targets less what the fit without the row, or without its group, predicts."""
    n, shrunk = len(targets), left * (variances / (variances + strength))
    centre = targets.mean(axis=0)
    residuals = targets - centre - shrunk @ (left.T @ (targets - centre))
    if groups is None:
        leverage = 1 / n + (shrunk * left).sum(axis=1)
        return residuals / (1 - leverage)[:, None]
    for one in np.unique(groups):
        rows = np.flatnonzero(groups == one)
        hat = 1 / n + shrunk[rows] @ left[rows].T
        residuals[rows] = np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
    return residuals
