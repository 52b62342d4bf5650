"""Linear classifiers on standardised features, as a fit leaves them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearClassifier:
    """Scores (x - mean) / scale W + b, and the softmax of them, or a sigmoid of each where labels are many."""

    weights: Float[np.ndarray, "d k"]
    intercepts: Float[np.ndarray, " k"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    is_multilabel: bool

    def scores(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Return the scores of every class."""
        return (features - self.mean) / self.scale @ self.weights + self.intercepts

    def predict_proba(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Return the probability of every class, or of every label."""
        scores = self.scores(features)
        return sigmoid(scores) if self.is_multilabel else softmax(scores)


def softmax(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return probabilities of classes."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return the probability of each label by itself."""
    # Of the negative size only: the exponential of a large number overflows.
    powers = np.exp(-np.abs(scores))
    return np.where(scores >= 0, 1, powers) / (1 + powers)


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
