"""Labels of examples as the classifiers take them: a class each, or any number of labels as targets of 0 and 1."""

import numpy as np
from jaxtyping import Float, Float32, Integer, Shaped

from tljax.data.class_weights import class_weights

# One class an example, or a column of 0 and 1 for each label.
Labels = Integer[np.ndarray, " n"] | Float[np.ndarray, "n k"]


def is_multilabel(labels: Shaped[np.ndarray, "n *k"]) -> bool:
    """Tell targets of any number of labels from classes."""
    return labels.ndim == 2


def as_targets(labels: Labels, num_classes: int) -> Float32[np.ndarray, "n k"]:
    """Return targets of 0 and 1, a column for each class.

    Raises:
        ValueError: a label is no position of a class, or the targets are not those of `num_classes`, or not 0 and 1.
    """
    if not is_multilabel(labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"labels are {labels.min()} to {labels.max()}, wanted 0 to {num_classes - 1}")
        targets = np.zeros((len(labels), num_classes), np.float32)
        targets[np.arange(len(labels)), labels] = 1
        return targets
    if labels.shape[1] != num_classes or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"targets are {labels.shape[1]} columns, wanted {num_classes} columns of 0 and 1")
    return labels.astype(np.float32)


def class_factors(
    labels: Labels, num_classes: int, class_weighting: str | None, beta: float | None
) -> Float32[np.ndarray, " k"]:
    """Return the weight of an example of each class: of `data.class_weights`, or 1 for a `class_weighting` of None.

    Raises:
        ValueError: weights for targets, whose examples have no one class; or as `class_weights`.
    """
    if class_weighting is None:
        return np.ones(num_classes, np.float32)
    if is_multilabel(labels):
        raise ValueError(f"class_weighting is {class_weighting!r}, wanted None: examples with several labels have none")
    return class_weights(labels, num_classes, kind=class_weighting, beta=beta)


def weigh(labels: Labels, factors: Float[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """Return the weight of each example."""
    return np.ones(len(labels), np.float32) if is_multilabel(labels) else factors[labels]


def log_loss(
    probabilities: Float[np.ndarray, "n k"], labels: Labels, weights: Float[np.ndarray, " n"] | None = None
) -> float:
    """Return the mean cross-entropy; of targets, the mean over their columns too."""
    tiny = np.finfo(np.float32).tiny
    if is_multilabel(labels):
        right = np.where(labels > 0, probabilities, 1 - probabilities)
        losses = -np.log(np.maximum(right, tiny)).mean(axis=1)
    else:
        losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], tiny))
    return float(losses.mean() if weights is None else np.average(losses, weights=weights))


def count_right(probabilities: Float[np.ndarray, "n k"], labels: Labels) -> int:
    """Count right predictions: the class of the first largest probability, or each label on its side of a half."""
    if is_multilabel(labels):
        return int(((probabilities >= 0.5) == (labels > 0)).sum())
    return int((probabilities.argmax(axis=1) == labels).sum())
