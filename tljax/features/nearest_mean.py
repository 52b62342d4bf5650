"""Nearest class mean: each class is the mean of its rows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tljax.features.labels import Labels, is_multilabel
from tljax.features.linear import softmax, standardisation
from tljax.features.similarity import unit_rows
from tljax.paths import did_you_mean

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMeans:
    """Means of the classes, of rows as `metric` compares them."""

    means: Float[np.ndarray, "k d"]
    is_known: Float[np.ndarray, " k"]  # 1 where the class has rows
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    metric: str
    temperature: float

    def scores(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Return the closeness of each class: a cosine, or minus half the mean squared distance of a feature."""
        rows = (features - self.mean) / self.scale
        if self.metric == "cosine":
            closeness = unit_rows(rows) @ self.means.T
        else:
            # Without the squared row, which is the same for all classes.
            closeness = (rows @ self.means.T - 0.5 * np.square(self.means).sum(axis=1)) / rows.shape[1]
        return np.where(self.is_known > 0, closeness, -np.inf)

    def predict_proba(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Return the softmax of closeness over temperature; 0 for a class without rows."""
        return softmax((self.scores(features) / np.float32(self.temperature)).astype(np.float32))


def fit_class_means(
    features: Float[np.ndarray, "n d"],
    labels: Labels,
    num_classes: int,
    *,
    metric: str,
    temperature: float,
) -> ClassMeans:
    """Take the mean of each class.

    Args:
        features: of the training examples.
        labels: positions of classes.
        num_classes: number of classes.
        metric: "cosine" compares directions, from 0, of rows as they are; "euclidean" distances of standardised rows.
        temperature: positive; see `ClassMeans.predict_proba`. The prediction does not depend on it.

    Raises:
        ValueError: an unknown metric, labels that are targets, a temperature that is not positive, or features that
            are not finite.

    Source:
        Mensink et al. 2013, IEEE TPAMI 35(11), section 3.2; with "cosine" Snell et al. 2017, arXiv:1703.05175, on
        directions.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}{did_you_mean(metric, METRICS)}; known: {', '.join(METRICS)}")
    if is_multilabel(labels):
        raise ValueError("nearest means need one class for each example, got targets of several labels")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, wanted a positive number")
    mean, scale = standardisation(features)
    if metric == "cosine":
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    rows = (features - mean) / scale
    rows = unit_rows(rows) if metric == "cosine" else rows
    counts = np.bincount(labels, minlength=num_classes)
    means = np.stack([rows[labels == k].sum(axis=0) / max(count, 1) for k, count in enumerate(counts)])
    return ClassMeans(
        means=unit_rows(means) if metric == "cosine" else means,
        is_known=(counts > 0).astype(np.float32),
        mean=mean,
        scale=scale,
        metric=metric,
        temperature=float(temperature),
    )
