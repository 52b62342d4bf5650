"""Draws of a few examples of each class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer


def draw_shots(
    labels: Integer[np.ndarray, " n"],
    candidates: Int[np.ndarray, " m"],
    num_classes: int,
    shots: Sequence[int],
    seed: int,
) -> dict[int, Int[np.ndarray, " drawn"]]:
    """Draw as many examples of each class as each of `shots` says, those of fewer among those of more.

    Args:
        labels: positions of classes.
        candidates: positions in `labels` to draw from.
        num_classes: number of classes.
        shots: numbers of examples of a class, each positive.
        seed: of the draw; `data.splits.hashed_seed` of a run's.

    Returns:
        Sorted positions for each number.

    Raises:
        ValueError: a number that is not positive, none, or a class with too few candidates.
    """
    if not shots or min(shots) < 1:
        raise ValueError(f"shots are {tuple(shots)}, wanted one or more positive numbers")
    generator = np.random.default_rng(seed)
    members = [generator.permutation(candidates[labels[candidates] == k]) for k in range(num_classes)]
    short = {k: len(member) for k, member in enumerate(members) if len(member) < max(shots)}
    if short:
        listed = ", ".join(f"class {k} has {count}" for k, count in short.items())
        raise ValueError(
            f"{max(shots)} examples of each class wanted, but {listed} to draw from; ask for fewer shots, or make the "
            "part larger"
        )
    return {count: np.sort(np.concatenate([member[:count] for member in members])) for count in shots}
