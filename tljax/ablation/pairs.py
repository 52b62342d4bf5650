"""Two settings that ran with the same seeds: tests of their difference, and its size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tljax.ablation.intervals import are_equal

# Up to this many pairs all signs are tried, and from there on some are drawn.
MOST_FOR_EXACT = 16
NUM_DRAWS = 65535
_SEED = 0
_CHUNK = 4096  # sign vectors at a time


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """A two-sided p value of paired differences.

    Args:
        p: share of the sign flips whose mean is as far from 0 as the mean found, itself among them.
        n: number of pairs.
        is_exact: all flips were tried; if not, `error` is the standard error of p.
        error: of p, from drawing flips; 0 where all were tried.
        least: the smallest p that n pairs can give.
    """

    p: float
    n: int
    is_exact: bool
    error: float
    least: float


def sign_flip_test(differences: Float[np.ndarray, " n"]) -> PermutationTest:
    """Test whether paired differences are centred on 0, by flipping their signs.

    Args:
        differences: one or more, finite.

    Raises:
        ValueError: no differences.

    Source:
        Fisher 1935, The Design of Experiments, section 21; a drawn test counts the flip found as one more draw, as in
        Phipson and Smyth 2010 (doi:10.2202/1544-6115.1585).
    """
    n = len(differences)
    if not n:
        raise ValueError("no differences to test")
    observed = abs(differences.sum())
    # Sums of the same numbers in another order differ in their last bits.
    threshold = observed - 1e-12 * np.abs(differences).sum()
    if n <= MOST_FOR_EXACT:
        total = 2**n
        extreme = sum(_count(_all_signs(n, start), differences, threshold) for start in range(0, total, _CHUNK))
        return PermutationTest(p=extreme / total, n=n, is_exact=True, error=0.0, least=2 / total)
    generator = np.random.default_rng(_SEED)
    extreme = 0
    for start in range(0, NUM_DRAWS, _CHUNK):
        signs = generator.integers(0, 2, (min(_CHUNK, NUM_DRAWS - start), n)) * 2.0 - 1
        extreme += _count(signs, differences, threshold)
    p = (extreme + 1) / (NUM_DRAWS + 1)
    error = math.sqrt(p * (1 - p) / NUM_DRAWS)
    return PermutationTest(p=p, n=n, is_exact=False, error=error, least=1 / (NUM_DRAWS + 1))


def _all_signs(n: int, start: int) -> np.ndarray:
    """Return some of the 2^n vectors of signs, those with the binary digits of `start` and of what follows."""
    numbers = np.arange(start, min(start + _CHUNK, 2**n))
    return ((numbers[:, None] >> np.arange(n)) & 1) * 2.0 - 1


def _count(signs: np.ndarray, differences: np.ndarray, threshold: float) -> int:
    return int((np.abs(signs @ differences) >= threshold).sum())


def wilcoxon_p(differences: Float[np.ndarray, " n"]) -> float | None:
    """Return the two-sided p value of Wilcoxon's signed-rank test, as scipy has it; None where all pairs are level."""
    if not np.any(differences):
        return None
    from scipy.stats import wilcoxon

    # "auto" is exact for few pairs without ties, and a normal approximation for others.
    found: Any = wilcoxon(differences)
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of a family so that any below a level is right for the family, at that level.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = highest
    return adjusted


def cohens_dz(differences: Float[np.ndarray, " n"]) -> float | None:
    """Return the mean of paired differences in units of their standard deviation; None where that is 0 or unknown.

    Source:
        Cohen 1988, Statistical Power Analysis, 2nd edition, section 2.3.5.
    """
    if len(differences) < 2 or are_equal(differences):
        return None
    return float(differences.mean() / differences.std(ddof=1))


def cliffs_delta(first: Float[np.ndarray, "*r n"], second: Float[np.ndarray, "*r m"]) -> Float[np.ndarray, "*r"]:
    """Return how much more often a value of the first is above one of the second than below, over all pairs.

    Source:
        Cliff 1993, Psychological Bulletin 114, 494-509.
    """
    return np.asarray(np.sign(first[..., :, None] - second[..., None, :]).mean(axis=(-2, -1)))


def probability_of_improvement(
    first: Float[np.ndarray, "*r n"], second: Float[np.ndarray, "*r m"]
) -> Float[np.ndarray, "*r"]:
    """Return the share of pairs in which the first is above the second, level pairs counted half.

    Source:
        Agarwal et al. 2021, arXiv:2108.13264, equation 2, of one task.
    """
    return np.asarray((cliffs_delta(first, second) + 1) / 2)


def minimum_detectable_difference(sd: float, n: int, *, level: float = 0.05, power: float = 0.8) -> float | None:
    """Return the true difference that a paired t test of n pairs would find that often; None for n below 2.

    Args:
        sd: standard deviation of the paired differences.
        n: number of pairs.
        level: of the two-sided test.
        power: how often the difference is found.

    Source:
        Cohen 1988, section 2.4, with the noncentral t distribution in place of his tables.
    """
    if n < 2:
        return None
    if sd == 0:
        return 0.0
    from scipy.optimize import root_scalar
    from scipy.stats import t

    critical = float(t.ppf(1 - level / 2, n - 1))

    def excess(shift: float) -> float:
        return power_of(shift, critical, n) - power

    # Twice the critical value is found more often than 19 times of 20, at any n; power for small n grows slowly.
    upper = 2 * critical
    while excess(upper) < 0:
        upper *= 2
    return float(root_scalar(excess, bracket=(0.0, upper)).root) * sd / math.sqrt(n)


def power_of(shift: float, critical: float, n: int) -> float:
    """Return how often a two-sided t test of n pairs rejects, where the mean is `shift` standard errors from 0."""
    from scipy.stats import nct

    # The lower tail as the upper one of the mirror image: far out scipy's cdf is NaN.
    return float(nct.sf(critical, n - 1, shift) + nct.sf(critical, n - 1, -shift))
