"""What a classifier is chosen and fitted on, and the choice of what held-out rows like best."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from tljax.features.labels import Labels, class_factors, weigh
from tljax.features.logistic import Fold


class Classifier(Protocol):
    """What a fit leaves."""

    def predict_proba(self, features: Float[np.ndarray, "n d"], /) -> Float[np.ndarray, "n k"]:
        """Return the probability of every class, or of every label."""
        ...


class Fitted(NamedTuple):
    """A classifier, and what was chosen for it."""

    classifier: Any  # a Classifier
    chosen: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeData:
    """Features and labels, and which rows are for what; rows to test on are for nothing here.

    Args:
        features: [n d], a row per example.
        labels: [n], positions of the classes; or [n k], targets of 0 and 1 for every label.
        num_classes: number of classes, or of labels.
        folds: (train, held out) positions to choose on; a single validation part is a list of one.
        train: positions to fit on after the choice.
        seed: of the run.
    """

    features: np.ndarray
    labels: Labels
    num_classes: int
    folds: Sequence[Fold]
    train: np.ndarray
    seed: int

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, Labels]:
        """Return features and labels of some rows."""
        return self.features[rows], self.labels[rows]

    def weights(
        self, train: np.ndarray, rows: np.ndarray, class_weighting: str | None, beta: float | None
    ) -> np.ndarray:
        """Return the weights of some rows by the frequencies of the classes among `train`."""
        return weigh(self.labels[rows], class_factors(self.labels[train], self.num_classes, class_weighting, beta))


def mean_over_folds(
    folds: Sequence[Fold], losses: Callable[[np.ndarray, np.ndarray], Iterable[float]]
) -> Float[np.ndarray, " options"]:
    """Return the loss of every option, averaged over the folds.

    Args:
        folds: pairs of positions (to train on, held out).
        losses: of every option, given such a pair.

    Raises:
        ValueError: no folds.
    """
    if not folds:
        raise ValueError("no folds to choose on; give at least one pair (train, held out)")
    return np.mean([list(losses(train, held_out)) for train, held_out in folds], axis=0)
