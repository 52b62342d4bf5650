"""What predictions are, and how good: by the labels of the data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.calibration import SIGMOID, SOFTMAX
from tljax.data.sources import Source, has_labels
from tljax.metrics import (
    average_precisions,
    classification_metrics,
    confusion_matrix,
    log_loss,
    multi_label_metrics,
)
from tljax.paths import did_you_mean


def kind_of(source: Source) -> str:
    """Return how scores become probabilities: "sigmoid" for independent labels, "softmax" for classes."""
    return SIGMOID if source.is_multi_label else SOFTMAX


def as_probabilities(source: Source, scores: np.ndarray) -> np.ndarray:
    """Turn the scores of a net into probabilities, as its device would: in float32."""
    return np.asarray((jax.nn.sigmoid if source.is_multi_label else jax.nn.softmax)(jnp.asarray(scores)))


def main_metric(source: Source) -> str:
    """Return the metric by which the best of several is chosen."""
    return "mean_average_precision" if source.is_multi_label else "accuracy"


def check_choice(source: Source, indices: np.ndarray) -> None:
    """Refuse to choose on images by a metric that they do not have.

    Raises:
        ValueError: the data are multi-label, and none of the images has a label.
    """
    if source.is_multi_label and not has_labels(source)[indices].any():
        raise ValueError(
            f"none of the {len(indices)} validation images has a label, so there is no {main_metric(source)} to choose "
            "by; raise config.split.val_fraction"
        )


def check_single_label(source: Source, what: str) -> None:
    """Refuse multi-label data where there is no such method.

    Args:
        source: the data.
        what: takes one class an image, for the message.

    Raises:
        ValueError: the data are multi-label.
    """
    if source.is_multi_label:
        raise ValueError(
            f"{source.name!r} is multi-label, and {what} takes one class an image; use `tljax finetune` or `tljax "
            "probe`, or data of kind 'single' or 'soft'"
        )


def check_evaluation(source: Source, *, group_by: str | None = None) -> None:
    """Find mistakes in `config.evaluate` before there is anything to evaluate.

    Raises:
        ValueError: the source has no such column.
    """
    if group_by is not None and group_by not in source.columns:
        raise ValueError(
            f"source {source.name!r} has no column {group_by!r}{did_you_mean(group_by, source.columns)}; "
            f"it has {', '.join(sorted(source.columns))}"
        )


def evaluate(
    source: Source, indices: np.ndarray, probabilities: np.ndarray, *, group_by: str | None = None
) -> dict[str, Any]:
    """Compare predicted probabilities with the labels.

    Args:
        source: the data.
        indices: which examples were predicted.
        probabilities: of every class, a row per example.
        group_by: column whose values get metrics of their own.

    Returns:
        "n_test", "metrics", "by_group" {value: metrics}, and "confusion" (rows are true classes) or, of multi-label
        data, "by_class" {class: "average_precision" and "num_images" that have it}. Soft labels are those of their
        largest share, and add the "log_loss" against the shares to the metrics.
    """

    def metrics(rows: np.ndarray) -> dict[str, float]:
        return _metrics(source, indices[rows], probabilities[rows])

    check_evaluation(source, group_by=group_by)
    column = np.array([]) if group_by is None else source.columns[group_by][indices]
    by_group = {str(value): metrics(np.flatnonzero(column == value)) for value in np.unique(column)}
    scores = {"n_test": len(indices), "metrics": metrics(np.arange(len(indices))), "by_group": by_group}
    if source.is_multi_label:
        return {**scores, "by_class": _by_class(source, indices, probabilities)}
    return {**scores, "confusion": confusion_matrix(probabilities, source.labels[indices])}


def _metrics(source: Source, indices: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    weights = source.weights[indices]
    if source.is_multi_label:
        return multi_label_metrics(probabilities, _targets(source)[indices], weights)
    metrics = classification_metrics(probabilities, source.labels[indices], weights)
    if source.targets is None:
        return metrics
    return {**metrics, "log_loss": log_loss(probabilities, source.targets[indices])}


def _by_class(source: Source, indices: np.ndarray, probabilities: np.ndarray) -> dict[str, dict[str, float | None]]:
    found = average_precisions(probabilities, _targets(source)[indices])
    counts = has_labels(source)[indices].sum(axis=0)
    return {
        name: {"average_precision": float(value) if count else None, "num_images": int(count)}
        for name, value, count in zip(source.class_names, found, counts, strict=True)
    }


def _targets(source: Source) -> np.ndarray:
    assert source.targets is not None
    return source.targets


def targets_of(source: Source, indices: np.ndarray) -> np.ndarray:
    """Return the shares that classes have in examples, 1 and 0 for plain labels; or each label on its own."""
    if source.targets is not None:
        return source.targets[indices]
    return np.eye(len(source.class_names), dtype=np.float32)[source.labels[indices]]
