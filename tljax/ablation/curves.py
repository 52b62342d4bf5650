"""Learning curves over seeds: mean and band at each step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Band:
    """The mean of several curves with its 95% interval at each step; the ends are NaN where one curve is left.

    Args:
        steps: increasing.
        mean, low, high: at each step.
        n: curves that reach each step.
    """

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: tuple[int, ...]


def band(curves: Sequence[Mapping[int, float]]) -> Band | None:
    """Average curves {step: value} at the steps that most of them have; None where there is no curve.

    Values that are not finite are left out, and `n` says so. The interval is Student's, of each step alone: the band
    holds the whole course less often than each point of it.
    """
    from scipy.stats import t

    counts: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve.items():
            if math.isfinite(value):
                counts.setdefault(step, []).append(value)
    # A run with another number of steps would leave the mean of all to jump to and fro.
    kept = {step: values for step, values in sorted(counts.items()) if 2 * len(values) > len(curves)}
    if not kept:
        return None
    n = np.array([len(values) for values in kept.values()])
    mean = np.array([np.mean(values) for values in kept.values()])
    sd = np.array([np.std(values, ddof=1) if len(values) > 1 else math.nan for values in kept.values()])
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * sd / np.sqrt(n)
    return Band(
        steps=tuple(kept),
        mean=tuple(mean.tolist()),
        low=tuple((mean - half).tolist()),
        high=tuple((mean + half).tolist()),
        n=tuple(n.tolist()),
    )
