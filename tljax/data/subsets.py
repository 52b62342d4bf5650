"""Some of the examples of a split: one kind alone, a kind held out, or fewer to train on, those among those of more."""

import numpy as np
from jaxtyping import Bool, Shaped

from tljax.data.splits import Split, hashed_seed


def keep_only(split: Split, is_kept: Bool[np.ndarray, " n"]) -> Split:
    """Leave out of every part what is not kept.

    Args:
        split: of a source.
        is_kept: of each example of the source.
    """
    train, val, test = (part[is_kept[part]] for part in (split.train, split.val, split.test))
    return Split(train=train, val=val, test=test)


def hold_out(split: Split, is_held_out: Bool[np.ndarray, " n"]) -> Split:
    """Keep what is held out in the test part alone, and all else in the other two; the rest goes nowhere.

    Args:
        split: of a source.
        is_held_out: of each example of the source.
    """
    train, val = (part[~is_held_out[part]] for part in (split.train, split.val))
    return Split(train=train, val=val, test=split.test[is_held_out[split.test]])


def limit_train(split: Split, strata: Shaped[np.ndarray, " n"], seed: int, limit: int) -> Split:
    """Keep some of the training examples, the others go nowhere.

    Those of a smaller limit are among those of a larger one, for the same split and seed. Every limit keeps the
    proportions of the strata, to within about one example of each.

    Args:
        split: of a source.
        strata: one for each example of the source.
        seed: which are kept.
        limit: how many.

    Raises:
        ValueError: there are not so many, or none are wanted.
    """
    if not 1 <= limit <= len(split.train):
        raise ValueError(f"train_limit is {limit}, wanted 1 to {len(split.train)}, the number of training examples")
    ranks = np.empty(len(split.train))
    generator = np.random.default_rng(hashed_seed(seed, "train limit"))
    for value in np.unique(strata[split.train]):
        members = np.flatnonzero(strata[split.train] == value)
        # Evenly apart from 0 to 1, with an offset of each stratum, lest all begin with the same one.
        ranks[generator.permutation(members)] = (np.arange(len(members)) + generator.uniform()) / len(members)
    chosen = np.argsort(ranks, kind="stable")[:limit]
    return Split(train=split.train[chosen], val=split.val, test=split.test)
