"""One setting against another, by seed: the difference with all that is said of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tljax.ablation.intervals import Summary, summarise, two_sample_interval
from tljax.ablation.pairs import (
    PermutationTest,
    cliffs_delta,
    cohens_dz,
    holm,
    minimum_detectable_difference,
    probability_of_improvement,
    sign_flip_test,
    wilcoxon_p,
)
from tljax.ablation.stats import Estimate

# The value of each seed that finished; a seed may be any sortable name of a repeat.
Values = Mapping[tuple[int, ...], float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is known of first - second over the seeds that both have.

    Args:
        difference: with its interval.
        num_left_out: seeds that only one of them has.
        permutation: the sign-flip test.
        wilcoxon: p of the signed-rank test; None where all pairs are level.
        adjusted_p: of the permutation test, by Holm's method, in the family that is shown together.
        d_z: the difference in standard deviations of the differences; None where they are equal or one.
        delta: Cliff's delta.
        improvement: probability that the first is above the second, with its bootstrap interval.
        detectable: the true difference that so many pairs with such a spread would show 8 times of 10.
    """

    difference: Summary
    num_left_out: int
    permutation: PermutationTest
    wilcoxon: float | None
    adjusted_p: float
    d_z: float | None
    delta: float
    improvement: Estimate
    detectable: float | None

    @property
    def is_shown(self) -> bool:
        """Whether both the interval and the adjusted test say that there is a difference."""
        return self.difference.excludes_zero and self.adjusted_p < 0.05


def paired_values(first: Values, second: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of the seeds that both have, in the order of the seeds."""
    shared = sorted(first.keys() & second.keys())
    return np.array([first[seed] for seed in shared]), np.array([second[seed] for seed in shared])


def compare(first: Values, second: Values) -> Comparison | None:
    """Compare two settings by seed, as a family of one; None where they share no seed."""
    ours, theirs = paired_values(first, second)
    differences = ours - theirs
    found = summarise(differences.tolist())
    if found is None:
        return None
    test = sign_flip_test(differences)
    return Comparison(
        difference=found,
        num_left_out=len(first.keys() ^ second.keys()),
        permutation=test,
        wilcoxon=wilcoxon_p(differences),
        adjusted_p=test.p,
        d_z=cohens_dz(differences),
        delta=float(cliffs_delta(ours, theirs)),
        improvement=_improvement(ours, theirs),
        detectable=minimum_detectable_difference(found.sd, found.n) if found.n > 1 else None,
    )


def _improvement(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    n, found = len(ours), float(probability_of_improvement(ours, theirs))
    low, high = two_sample_interval(ours, theirs, _chunked_improvement) if n > 1 else (np.nan, np.nan)
    return Estimate(mean=found, low=low, high=high, n=n)


def _chunked_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Compare resamples a part at a time: all pairs of all resamples would fill the memory."""
    size = max(2_000_000 // (ours.shape[1] * theirs.shape[1]), 1)
    parts = range(0, len(ours), size)
    return np.concatenate([probability_of_improvement(ours[at : at + size], theirs[at : at + size]) for at in parts])


def as_family(comparisons: Sequence[Comparison | None]) -> list[Comparison | None]:
    """Adjust the tests that are shown together by Holm's method."""
    known = [one for one in comparisons if one is not None]
    adjusted = iter(holm([one.permutation.p for one in known]))
    return [None if one is None else dataclasses.replace(one, adjusted_p=next(adjusted)) for one in comparisons]
