"""A linear probe judged by cross-validation: one accuracy for each fold."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from tljax.features.labels import log_loss
from tljax.features.logistic import Fold, fit_path


def fold_accuracies(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    folds: Sequence[Fold],
    strengths: Sequence[float],
) -> list[float]:
    """Fit logistic regression on each fold's training rows, and return its accuracy on those held out.

    The strength of a fold is the one of least log-loss over what the other folds hold out, so no row has a say in how
    it is predicted but through that one number.

    Args:
        features: of all rows that the folds point into.
        labels: aligned with `features`.
        num_classes: 2 or more.
        folds: pairs of positions (to train on, held out), two or more.
        strengths: of the L2 penalty, to choose from.

    Raises:
        ValueError: fewer than two folds, or as `fit_path`.
    """
    if len(folds) < 2:
        raise ValueError(
            f"there are {len(folds)} folds, wanted two or more: each is judged by the strength of the others"
        )
    losses, hits = [], []
    for train, held_out in folds:
        path = fit_path(features[train], labels[train], num_classes, strengths)
        probabilities = path.predict_proba(features[held_out])  # strength row class
        losses.append([log_loss(of_strength, labels[held_out]) for of_strength in probabilities])
        hits.append((probabilities.argmax(axis=2) == labels[held_out]).mean(axis=1))
    others = np.sum(losses, axis=0) - np.array(losses)
    return [float(of_fold[choice]) for of_fold, choice in zip(hits, others.argmin(axis=1), strict=True)]
