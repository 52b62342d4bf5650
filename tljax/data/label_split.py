"""Split of examples that have several labels at once."""

import numpy as np
from jaxtyping import Bool

from tljax.data.splits import Split, check_fractions, hashed_seed

PARTS = ("train", "val", "test")


def label_split(labels: Bool[np.ndarray, "n k"], seed: int, test_fraction: float, val_fraction: float) -> Split:
    """Split at random with about the same share of every label in each part.

    Combinations of labels are mostly too rare to be strata. Here the examples of the rarest label that is left are
    dealt out first, each to the part that lacks most of this label.

    Args:
        labels: whether an example has a label; k of them.
        seed: the run's seed.
        test_fraction: share of all examples, about; may be 0.
        val_fraction: the same; train takes the rest.

    Raises:
        ValueError: the fractions are negative or leave nothing to train on.

    Source:
        Sechidis, Tsoumakas and Vlahavas 2011, On the stratification of multi-label data, algorithm 1.
    """
    check_fractions(test_fraction, val_fraction)
    shares = np.array([1 - test_fraction - val_fraction, val_fraction, test_fraction])
    generator = np.random.default_rng(hashed_seed(seed, "label split"))
    # Ties between examples are broken by their order, those between parts by the order of these.
    order, parts = generator.permutation(len(labels)), generator.permutation(np.flatnonzero(shares))
    chosen = parts[_deal(labels[order], shares[parts])]
    train, val, test = (order[chosen == part] for part in range(len(PARTS)))
    return Split(train=train, val=val, test=test)


def _deal(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the part of each example; every share is above 0."""
    num_examples, num_labels = labels.shape
    # Examples of each label, and last of all, that each part still lacks.
    lacks = shares[:, None] * np.append(labels.sum(axis=0), num_examples)
    left, is_left = labels.sum(axis=0), np.ones(num_examples, bool)
    part_of = np.zeros(num_examples, np.int64)

    def give(example: int, label: int) -> None:
        most = np.flatnonzero(lacks[:, label] == lacks[:, label].max())
        part = most[lacks[most, -1].argmax()]
        part_of[example], is_left[example] = part, False
        lacks[part, :num_labels] -= labels[example]
        lacks[part, -1] -= 1

    while left.any():
        rarest = np.where(left > 0, left, num_examples + 1).argmin()
        members = np.flatnonzero(labels[:, rarest] & is_left)
        for example in members:
            give(int(example), int(rarest))
        left = left - labels[members].sum(axis=0)
    for example in np.flatnonzero(is_left):
        give(int(example), -1)
    return part_of
