"""L2 logistic regression over a path of strengths.

With z = (x - mean) / scale and class probabilities softmax(z W + b), a fit minimises

    weighted mean over examples of the cross-entropy  +  strength / 2 * ||W||^2

where b is free, and for two classes the first column of W is held at 0. On z, scikit-learn's `LogisticRegression(C)`
has the same optimum for C = 1 / (strength * n). Where an example has any number of labels, each label is a problem of
two classes by itself.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tljax.features.labels import Labels, as_targets, class_factors, is_multilabel, log_loss, weigh
from tljax.features.linear import LinearClassifier, standardisation
from tljax.features.logistic_solver import Problem, rotate, solve, solve_each

Fold = tuple[np.ndarray, np.ndarray]

STRENGTHS = tuple(float(strength) for strength in np.logspace(0, -6, 20))
# As many, and as far apart, as Oquab et al. 2023, arXiv:2304.07193, appendix B.3, try: where nothing is known of the
# features, no end of them is the best.
WIDE_STRENGTHS = tuple(float(strength) for strength in np.logspace(5, -6, 45))
# Share of the objective that may be left to gain, as the solver's diagonal guess of the curvature sees it.
TOLERANCE = 1e-7

# Rows and columns are padded to multiples of them, so that folds of about one size share a compiled program.
_ROW_MULTIPLE = 64
_COLUMN_MULTIPLE = 8
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
    is_multilabel: bool

    def at(self, position: int) -> LinearClassifier:
        """Return one of the fits."""
        return LinearClassifier(
            weights=self.weights[position],
            intercepts=self.intercepts[position],
            mean=self.mean,
            scale=self.scale,
            is_multilabel=self.is_multilabel,
        )

    def predict_proba(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "s n k"]:
        """Return the class probabilities of every fit."""
        return np.stack([self.at(position).predict_proba(features) for position in range(len(self.strengths))])


def fit_path(
    features: Float[np.ndarray, "n d"],
    labels: Labels,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    *,
    weights: Float[np.ndarray, " n"] | None = None,
    tolerance: float = TOLERANCE,
) -> LogisticPath:
    """Fit every strength, each from the solutions of the stronger ones.

    Args:
        features: of the training examples; their mean and standard deviation standardise.
        labels: positions of classes; or targets of 0 and 1 for every label.
        num_classes: 2 or more, or the number of labels; a class without examples gets probabilities near 0.
        strengths: positive, in any order.
        weights: of the examples, positive; only their ratios count. None weighs all alike.
        tolerance: share of the objective that a fit may leave to be gained, by an estimate that measured up to
            30 times too low at the weakest strengths.

    Raises:
        ValueError: features that are not finite, a strength that is not positive, or none.
    """
    strengths = _descending(strengths)
    mean, scale = standardisation(features)
    shares = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    # TF32 and bfloat16 products, the default of accelerators, would end far from the optimum.
    with jax.default_matmul_precision("highest"):
        problem, rotation = _pose((features - mean) / scale, as_targets(labels, num_classes), shares / shares.sum())
        stacked = jnp.stack(list(_follow(problem, strengths, tolerance, is_multilabel(labels))))
        turned, intercepts = np.asarray(rotation @ stacked[:, :-1]), np.asarray(stacked[:, -1])
    turned = turned[:, : features.shape[1]]
    if num_classes == 2 and not is_multilabel(labels):
        turned, intercepts = np.pad(turned, ((0, 0), (0, 0), (1, 0))), np.pad(intercepts, ((0, 0), (1, 0)))
    return LogisticPath(
        strengths=strengths,
        weights=turned,
        intercepts=intercepts,
        mean=mean,
        scale=scale,
        is_multilabel=is_multilabel(labels),
    )


def choose_strength(
    features: Float[np.ndarray, "n d"],
    labels: Labels,
    num_classes: int,
    folds: Sequence[Fold],
    strengths: Sequence[float] = STRENGTHS,
    *,
    class_weighting: str | None = None,
    beta: float | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Return the strength with the lowest held-out cross-entropy, averaged over the folds; of equals the strongest.

    Args:
        features: of all examples that the folds point into.
        labels: aligned with `features`.
        num_classes: as for `fit_path`.
        folds: pairs of positions (to train on, held out); one pair is a plain validation split.
        strengths: as for `fit_path`. A choice at an end of them is logged as a warning: the best may lie beyond.
        class_weighting: None, or a kind of `class_weights`: of the training part, and on both losses.
        beta: of `class_weights`.
        tolerance: as for `fit_path`.

    Raises:
        ValueError: no folds, or as `fit_path` and `class_weights`.
    """
    if not folds:
        raise ValueError("no folds to choose a strength on; give at least one pair (train, held out)")
    tried, losses = _descending(strengths), []
    for train, held_out in folds:
        factors = class_factors(labels[train], num_classes, class_weighting, beta)
        weights, held_weights = weigh(labels[train], factors), weigh(labels[held_out], factors)
        path = fit_path(features[train], labels[train], num_classes, tried, weights=weights, tolerance=tolerance)
        asked, wanted = features[held_out], labels[held_out]
        fits = map(path.at, range(len(tried)))
        losses.append([log_loss(fit.predict_proba(asked), wanted, held_weights) for fit in fits])
    best = int(np.mean(losses, axis=0).argmin())
    warn_at_an_end(best, tried)
    return tried[best]


def warn_at_an_end(best: int, tried: Sequence[float]) -> None:
    """Log that a better strength than the best of those tried may lie beyond them."""
    if best in (0, len(tried) - 1) and len(tried) > 1:
        log.warning(
            "the best strength %g is at an end of the %d tried, %g to %g; a wider range may be better",
            tried[best], len(tried), tried[0], tried[-1],
        )  # fmt: skip


def _descending(strengths: Sequence[float]) -> tuple[float, ...]:
    descending = tuple(sorted({float(strength) for strength in strengths}, reverse=True))
    if not descending or not min(descending) > 0:
        raise ValueError(f"strengths are {descending}, wanted one or more positive numbers")
    return descending


def _pose(z: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> tuple[Problem, jax.Array]:
    """Pad rows and columns, and rotate."""
    n, d = z.shape
    rows = (0, -n % _ROW_MULTIPLE)
    weights = jnp.asarray(np.pad(shares.astype(np.float32), rows))
    is_true = jnp.asarray(np.pad(targets > 0, (rows, (0, 0))))
    padded = np.pad(z.astype(np.float32), (rows, (0, -d % _COLUMN_MULTIPLE)))
    design, rotation, eigenvalues = rotate(jnp.asarray(padded), weights)
    return Problem(design, eigenvalues, is_true, weights), rotation


def _follow(
    problem: Problem, strengths: Sequence[float], tolerance: float, has_many_labels: bool
) -> Iterator[jax.Array]:
    """Yield the params of each strength, solved from those before."""
    solve_next = solve_each if has_many_labels else solve
    params, gains = _start(problem, has_many_labels), []
    before = params
    for position, strength in enumerate(strengths):
        # Along the logarithm of the strength the params move almost on a line.
        guess = params + _step_ratio(strengths, position) * (params - before)
        before = params
        params, gain = solve_next(problem, params, guess, jnp.float32(strength), jnp.float32(tolerance))
        gains.append(jnp.max(gain))
        yield params
    _check_convergence(strengths, np.asarray(jnp.stack(gains)), tolerance)


def _step_ratio(strengths: Sequence[float], position: int) -> float:
    """Return how much longer the step to a strength is than the one before; 0 where there is none before."""
    if position < 2:
        return 0.0
    further, last, now = (math.log(strength) for strength in strengths[position - 2 : position + 1])
    return (now - last) / (last - further)


def _start(problem: Problem, has_many_labels: bool) -> jax.Array:
    """Return the optimum for an infinite strength: intercepts that give the shares of the classes."""
    shares = problem.weights @ problem.is_true.astype(jnp.float32)
    scores = jnp.log(jnp.maximum(shares, _LEAST_SHARE))
    if has_many_labels:
        scores = scores - jnp.log(jnp.maximum(1 - shares, _LEAST_SHARE))
    elif len(shares) == 2:
        scores = scores[1:] - scores[:1]
    return jnp.zeros((problem.design.shape[1], len(scores)), jnp.float32).at[-1].set(scores)


def _check_convergence(strengths: Sequence[float], gains: np.ndarray, tolerance: float) -> None:
    late = int(gains.argmax())
    if gains[late] > 10 * tolerance:
        log.warning(
            "the fit with strength %g stopped where its objective could fall by a share of %.1e, wanted %.1e",
            strengths[late], gains[late], tolerance,
        )  # fmt: skip
