"""Ridge regression on 0 and 1 over a path of strengths, from one eigendecomposition, with exact leave-one-out errors.

With z = (x - mean) / scale and targets y of 0 and 1, a fit minimises

    weighted mean over examples of ||z W + b - y||^2 / 2  +  strength / 2 * ||W||^2

where b is free. On z, scikit-learn's `Ridge(alpha)` has the same optimum for alpha = strength * n. In float64, and on
the host: the work is one product with the features and one eigendecomposition of their covariance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tljax.features.labels import Labels, as_targets, is_multilabel
from tljax.features.linear import LinearClassifier, softmax, standardisation

# Rows that are in float64 at once.
_BLOCK = 8192
# Directions whose share of the variance is smaller are noise of rounding.
_LEAST_SHARE = 1e-12
_SHARPEST = 1e3
_NEWTON_STEPS = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgePath:
    """Fits of one problem, in the order of their strengths."""

    strengths: tuple[float, ...]
    weights: Float[np.ndarray, "s d k"]
    intercepts: Float[np.ndarray, "s k"]
    leave_one_out_errors: Float[np.ndarray, " s"]  # mean squared, of rows that their fit has not seen
    sharpness: Float[np.ndarray, " s"]  # see `at`
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    is_multilabel: bool

    def errors(
        self, features: Float[np.ndarray, "n d"], labels: Labels, weights: Float[np.ndarray, " n"]
    ) -> Iterator[float]:
        """Yield the weighted mean squared error of each fit on other rows."""
        targets = as_targets(labels, self.weights.shape[2])
        z = (features - self.mean) / self.scale
        for solved, intercepts in zip(self.weights, self.intercepts, strict=True):
            yield float(np.average(np.square(z @ solved + intercepts - targets).mean(axis=1), weights=weights))

    def at(self, position: int) -> LinearClassifier:
        """Return one of the fits as a classifier.

        A regression on 0 and 1 is no probability. The softmax of it times `sharpness`, or for many labels the sigmoid
        of its distance from a half times that of 0 to 1, is one, and the sharpness is of least leave-one-out log-loss.
        """
        sharpness, intercepts = self.sharpness[position], self.intercepts[position]
        factor = 2 * sharpness if self.is_multilabel else sharpness
        return LinearClassifier(
            weights=(factor * self.weights[position]).astype(np.float32),
            intercepts=(factor * (intercepts - 0.5 if self.is_multilabel else intercepts)).astype(np.float32),
            mean=self.mean,
            scale=self.scale,
            is_multilabel=self.is_multilabel,
        )


def fit_ridge_path(
    features: Float[np.ndarray, "n d"],
    labels: Labels,
    num_classes: int,
    strengths: Sequence[float],
    *,
    weights: Float[np.ndarray, " n"] | None = None,
) -> RidgePath:
    """Fit every strength.

    Args:
        features: of the training examples, 2 or more; their mean and standard deviation standardise, and
            leave-one-out leaves these as they are.
        labels: positions of classes; or targets of 0 and 1 for every label.
        num_classes: number of classes, or of labels.
        strengths: positive.
        weights: of the examples, positive; only their ratios count. None weighs all alike.

    Raises:
        ValueError: features that are not finite, a strength that is not positive, none, or a single example.

    Source:
        Golub, Heath and Wahba 1979, Technometrics 21(2): leave-one-out from the diagonal of the hat matrix.
    """
    if not len(strengths) or not min(strengths) > 0 or len(features) < 2:
        raise ValueError(
            f"strengths are {tuple(strengths)}, wanted one or more positive numbers; examples are {len(features)}, "
            "wanted 2 or more"
        )
    mean, scale = standardisation(features)
    targets = as_targets(labels, num_classes)
    shares = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    shares = shares / shares.sum()
    z = (features - mean) / scale
    centre, middle = shares @ z.astype(np.float64), shares @ targets.astype(np.float64)
    eigenvalues, basis, products = _decompose(z, centre, targets - middle, shares)
    inverses = 1 / (eigenvalues[:, None] + np.asarray(strengths, np.float64))  # r s
    solved = np.stack([basis @ (inverse[:, None] * products) for inverse in inverses.T])
    intercepts = middle - centre @ solved
    leverages = np.concatenate([np.square((z[part] - centre) @ basis) @ inverses for part in _blocks(len(z))])  # n s
    leverages = shares[:, None] * (1 + leverages)
    errors, sharpness = [], []
    for leverage, one, intercept in zip(leverages.T, solved, intercepts, strict=True):
        # What is left of a residual by the fit that saw its row; a row that decides alone has no other fit.
        predicted = np.concatenate([z[part] @ one for part in _blocks(len(z))]) + intercept
        residuals = (targets - predicted) / np.maximum(1 - leverage, _LEAST_SHARE)[:, None]
        errors.append(shares @ np.square(residuals).mean(axis=1))
        sharpness.append(_sharpen(targets - residuals, targets, shares, is_multilabel(labels)))
    return RidgePath(
        strengths=tuple(float(strength) for strength in strengths),
        weights=solved,
        intercepts=intercepts,
        leave_one_out_errors=np.array(errors),
        sharpness=np.array(sharpness),
        mean=mean,
        scale=scale,
        is_multilabel=is_multilabel(labels),
    )


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)]


def _decompose(
    z: np.ndarray, centre: np.ndarray, targets: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return eigenvalues [r] and eigenvectors [d r] of the covariance, and these times features times targets [r k]."""
    n, d = z.shape
    products = np.zeros((d, targets.shape[1]))
    covariance = np.zeros((d, d) if d <= n else (0, 0))
    # With more columns than rows, the rows span less than all, and their products have the same eigenvalues.
    roots = np.sqrt(shares)[:, None] * (z - centre) if d > n else None
    for part in _blocks(n):
        rows = z[part] - centre
        weighted = rows.T * shares[part]
        products += weighted @ targets[part]
        if d <= n:
            covariance += weighted @ rows
    eigenvalues, vectors = np.linalg.eigh(covariance if roots is None else roots @ roots.T)
    kept = eigenvalues > _LEAST_SHARE * max(eigenvalues[-1], np.finfo(np.float64).tiny)
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    basis = vectors if roots is None else roots.T @ vectors / np.sqrt(eigenvalues)
    return eigenvalues, basis, basis.T @ products


def _sharpen(predicted: np.ndarray, targets: np.ndarray, shares: np.ndarray, has_many_labels: bool) -> float:
    """Return the factor on regressions of least log-loss, by Newton's method: the loss is convex in it."""
    if has_many_labels:
        # A label against its opposite: their regressions are p and 1 - p.
        predicted = np.stack([predicted, 1 - predicted], axis=-1).reshape(-1, 2)  # n k 2 -> (n k) 2
        targets = np.stack([targets, 1 - targets], axis=-1).reshape(-1, 2)
        shares = np.repeat(shares, len(targets) // len(shares))
    sharpness = 1.0
    for _ in range(_NEWTON_STEPS):
        probabilities = softmax(sharpness * predicted)
        means = (probabilities * predicted).sum(axis=1)
        slope = shares @ (means - (targets * predicted).sum(axis=1))
        curvature = shares @ ((probabilities * np.square(predicted)).sum(axis=1) - np.square(means))
        # Regressions that separate the classes have no best factor, and those that rank them wrongly none above 0.
        step = slope / max(curvature, np.finfo(np.float64).tiny)
        sharper = float(np.clip(sharpness - step, sharpness / 4, min(4 * sharpness, _SHARPEST)))
        if abs(sharper - sharpness) <= 1e-9 * sharpness:
            break
        sharpness = sharper
    return sharpness
