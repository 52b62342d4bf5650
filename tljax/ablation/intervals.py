"""Intervals of a mean over seeds: Student's t of few, and the bootstrap from eight on."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tljax.ablation.stats import Estimate
from tljax.metrics import mean_interval

# Fewer values have too few distinct resamples; experiments/statistics has the coverage of both.
LEAST_FOR_BOOTSTRAP = 8
NUM_RESAMPLES = 9999
# Of the resamples: a report written twice is the same.
_SEED = 0
T, BOOTSTRAP, NONE = "t", "BCa bootstrap", "none"


@dataclass(frozen=True, kw_only=True)
class Summary(Estimate):
    """A mean with its interval, the standard deviation over the repeats, and how the interval was made.

    `sd` is NaN for one repeat.
    """

    sd: float
    method: str


def summarise(values: Sequence[float], confidence: float = 0.95) -> Summary | None:
    """Average finite values over repeats; None where there is no value.

    The interval is Student's below `LEAST_FOR_BOOTSTRAP` values and expanded BCa from there on, and without width for
    equal values.

    Raises:
        ValueError: a value is not finite: a failed run has no place in a mean.
    """
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"got {numbers.tolist()}, wanted finite values: leave failed runs out, and list them")
    if not len(numbers):
        return None
    n = len(numbers)
    if n > 1 and are_equal(numbers):
        return Summary(mean=float(numbers[0]), low=float(numbers[0]), high=float(numbers[0]), n=n, sd=0.0, method=T)
    mean, sd, low, high = mean_interval(numbers.tolist(), confidence)
    if n < LEAST_FOR_BOOTSTRAP:
        return Summary(mean=mean, low=low, high=high, n=n, sd=sd, method=T if n > 1 else NONE)
    low, high = bca_interval(numbers, confidence)
    return Summary(mean=mean, low=low, high=high, n=n, sd=sd, method=BOOTSTRAP)


def are_equal(values: Float[np.ndarray, " n"]) -> bool:
    """Tell whether numbers are the same but for rounding: 0.9 - 0.8 is not 0.8 - 0.7 in the last bit."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def percentile_interval(
    values: Float[np.ndarray, " n"], confidence: float = 0.95, *, is_expanded: bool = True
) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval of the mean.

    Args:
        values: two or more.
        confidence: of the interval.
        is_expanded: take wider percentiles, those that make up for the resamples' spread, which is too small by
            sqrt((n - 1) / n), and for few degrees of freedom.

    Source:
        Efron 1979, Annals of Statistics 7, 1-26; Hesterberg 2015, The American Statistician 69, 371-386, section 5.3
        (expanded percentiles).
    """
    ends = _normal_ends(len(values), confidence, is_expanded=is_expanded)
    return _percentiles(resampled_means(values), _normal_share(ends))


def bca_interval(
    values: Float[np.ndarray, " n"], confidence: float = 0.95, *, is_expanded: bool = True
) -> tuple[float, float]:
    """Return the ends of the bias-corrected and accelerated bootstrap interval of the mean.

    Args:
        values: two or more; equal values have an interval without width.
        confidence: of the interval.
        is_expanded: as for `percentile_interval`; without it 10 normal values are covered 90 times of 100, not 95.

    Source:
        Efron 1987, Journal of the American Statistical Association 82, 171-185; the acceleration is that of the
        jackknife. Expanded as in Hesterberg 2015.
    """
    mean, means = values.mean(), resampled_means(values)
    if are_equal(values):
        return float(values[0]), float(values[0])
    from scipy.special import ndtri

    # Means of the same values in another order are level but for their last bits.
    level = 1e-12 * np.abs(values).max()
    bias = ndtri(((means < mean - level).mean() + (means <= mean + level).mean()) / 2)
    centred = values - mean
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    shift = bias + _normal_ends(len(values), confidence, is_expanded=is_expanded)
    return _percentiles(means, _normal_share(bias + shift / (1 - acceleration * shift)))


def resampled_means(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " r"]:
    """Return the means of `NUM_RESAMPLES` samples of n of n values with replacement."""
    return _shares(len(values)) @ values


@functools.lru_cache(maxsize=8)
def _shares(n: int) -> Float[np.ndarray, "r n"]:
    """Return how large a part each of n values has in each resample."""
    drawn = np.random.default_rng(_SEED).integers(0, n, (NUM_RESAMPLES, n))
    shares = np.zeros((NUM_RESAMPLES, n))
    np.add.at(shares, (np.arange(NUM_RESAMPLES)[:, None], drawn), 1 / n)
    return shares


def _normal_ends(n: int, confidence: float, *, is_expanded: bool) -> np.ndarray:
    """Return the two normal deviates between which an interval lies."""
    from scipy.special import ndtri
    from scipy.stats import t

    upper = (1 + confidence) / 2
    end = float(t.ppf(upper, n - 1)) * math.sqrt(n / (n - 1)) if is_expanded else float(ndtri(upper))
    return np.array([-end, end])


def _normal_share(deviates: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return np.asarray(ndtr(deviates))


def _percentiles(means: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, shares)
    return float(low), float(high)


def two_sample_interval(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval of a statistic of two samples, each resampled alone.

    Args:
        first: two or more values.
        second: two or more values.
        statistic: of resamples [r n] and [r m], for each of the r.
        confidence: of the interval.
    """
    generator = np.random.default_rng(_SEED)
    n, m = len(first), len(second)
    ours = first[generator.integers(0, n, (NUM_RESAMPLES, n))]
    theirs = second[generator.integers(0, m, (NUM_RESAMPLES, m))]
    rest = (1 - confidence) / 2
    return _percentiles(statistic(ours, theirs), np.array([rest, 1 - rest]))
