"""L2 logistic regression over a path of strengths.

With z = (x - mean) / scale and class probabilities softmax(z W + b), a fit minimises

    mean over examples of the cross-entropy  +  strength / 2 * ||W||^2

where b is free, and for two classes the first column of W is held at 0. On z, scikit-learn's `LogisticRegression(C)`
has the same optimum for C = 1 / (strength * n).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from tljax.features.logistic_solver import Problem, rotate, solve

Fold = tuple[np.ndarray, np.ndarray]

STRENGTHS = tuple(float(strength) for strength in np.logspace(0, -6, 20))
# Share of the objective that may be left to gain, as the solver's diagonal guess of the curvature sees it.
TOLERANCE = 1e-7

# Rows are padded to a multiple of it, so that folds of about one size share a compiled program.
_ROW_MULTIPLE = 64
# A class without examples starts from this share: the logarithm of 0 is of no use.
_LEAST_SHARE = 1e-6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticPath:
    """Fits of one problem, strongest regularisation first."""

    strengths: tuple[float, ...]
    weights: Float[np.ndarray, "s d k"]
    intercepts: Float[np.ndarray, "s k"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    def predict_proba(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "s n k"]:
        """Return the class probabilities of every fit."""
        scores = (features - self.mean) / self.scale @ self.weights + self.intercepts[:, None]
        powers = np.exp(scores - scores.max(axis=2, keepdims=True))
        return powers / powers.sum(axis=2, keepdims=True)


def standardisation(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Return mean and standard deviation of each feature, the latter 1 where it is lost in rounding.

    Raises:
        ValueError: a feature is not finite.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(deviation))
    if len(broken):
        raise ValueError(f"{len(broken)} of {len(mean)} features are not finite, the first is column {broken[0]}")
    is_constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    return mean.astype(np.float32), np.where(is_constant, 1, deviation).astype(np.float32)


def fit_path(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    *,
    tolerance: float = TOLERANCE,
) -> LogisticPath:
    """Fit every strength, each from the solution of the next stronger one.

    Args:
        features: of the training examples; their mean and standard deviation standardise.
        labels: positions of classes.
        num_classes: 2 or more; a class without examples gets probabilities near 0.
        strengths: positive, in any order.
        tolerance: share of the objective that a fit may leave to be gained, by an estimate that measured up to
            30 times too low at the weakest strengths.

    Raises:
        ValueError: features that are not finite, a strength that is not positive, or none.
    """
    strengths = _descending(strengths)
    mean, scale = standardisation(features)
    # TF32 and bfloat16 products, the default of accelerators, would end far from the optimum.
    with jax.default_matmul_precision("highest"):
        problem, rotation = _pose((features - mean) / scale, labels, num_classes)
        params = _start(problem, num_classes)
        fits, gains = [], []
        for strength in strengths:
            params, gain = solve(problem, params, jnp.float32(strength), jnp.float32(tolerance))
            fits.append(params)
            gains.append(gain)
        stacked = jnp.stack(fits)
        weights, intercepts = np.asarray(rotation @ stacked[:, :-1]), np.asarray(stacked[:, -1])
    _check_convergence(strengths, np.asarray(jnp.stack(gains)), tolerance)
    if num_classes == 2:
        weights, intercepts = np.pad(weights, ((0, 0), (0, 0), (1, 0))), np.pad(intercepts, ((0, 0), (1, 0)))
    return LogisticPath(strengths=strengths, weights=weights, intercepts=intercepts, mean=mean, scale=scale)


def choose_strength(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    folds: Sequence[Fold],
    strengths: Sequence[float] = STRENGTHS,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Return the strength with the lowest held-out cross-entropy, averaged over the folds; of equals the strongest.

    Args:
        features: of all examples that the folds point into.
        labels: aligned with `features`.
        num_classes: as for `fit_path`.
        folds: pairs of positions (to train on, held out); one pair is a plain validation split.
        strengths: as for `fit_path`. A choice at an end of them is logged as a warning: the best may lie beyond.
        tolerance: as for `fit_path`.

    Raises:
        ValueError: no folds, or as `fit_path`.
    """
    if not folds:
        raise ValueError("no folds to choose a strength on; give at least one pair (train, held out)")
    tried, losses = _descending(strengths), []
    for train, held_out in folds:
        path = fit_path(features[train], labels[train], num_classes, tried, tolerance=tolerance)
        right = path.predict_proba(features[held_out])[:, np.arange(len(held_out)), labels[held_out]]
        losses.append(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean(axis=1))
    best = int(np.mean(losses, axis=0).argmin())
    if best in (0, len(tried) - 1) and len(tried) > 1:
        log.warning(
            "the best strength %g is at an end of the %d tried, %g to %g; a wider range may be better",
            tried[best], len(tried), tried[0], tried[-1],
        )  # fmt: skip
    return tried[best]


def _descending(strengths: Sequence[float]) -> tuple[float, ...]:
    descending = tuple(sorted({float(strength) for strength in strengths}, reverse=True))
    if not descending or not min(descending) > 0:
        raise ValueError(f"strengths are {descending}, wanted one or more positive numbers")
    return descending


def _pose(z: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[Problem, jax.Array]:
    """Pad the rows, so that folds of about one size share a compiled program, and rotate."""
    n = len(z)
    rows = (0, -n % _ROW_MULTIPLE)
    weights = jnp.asarray(np.pad(np.full(n, 1 / n, np.float32), rows))
    is_true = jnp.asarray(np.pad(np.eye(num_classes, dtype=bool)[labels], (rows, (0, 0))))
    design, rotation, eigenvalues = rotate(jnp.asarray(np.pad(z.astype(np.float32), (rows, (0, 0)))), weights)
    return Problem(design, eigenvalues, is_true, weights), rotation


def _start(problem: Problem, num_classes: int) -> jax.Array:
    """Return the optimum for an infinite strength: intercepts that give the shares of the classes."""
    shares = problem.weights @ problem.is_true.astype(jnp.float32)
    scores = jnp.log(jnp.maximum(shares, _LEAST_SHARE))
    intercepts = scores[1:] - scores[:1] if num_classes == 2 else scores
    return jnp.zeros((problem.design.shape[1], len(intercepts)), jnp.float32).at[-1].set(intercepts)


def _check_convergence(strengths: Sequence[float], gains: np.ndarray, tolerance: float) -> None:
    late = int(gains.argmax())
    if gains[late] > 10 * tolerance:
        log.warning(
            "the fit with strength %g stopped where its objective could fall by a share of %.1e, wanted %.1e",
            strengths[late], gains[late], tolerance,
        )  # fmt: skip
