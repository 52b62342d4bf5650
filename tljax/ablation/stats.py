"""What the evaluations of a job say: means and differences over repeats, with their intervals."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.metrics import mean_interval

METRICS = {
    "accuracy": "accuracy",
    "weighted_accuracy": "confidence-weighted accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
}
FINETUNE = "finetune"

Repeats = Mapping[int, int | float | None]  # a value for each repeat; None where it is not defined


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over n repeats with its 95% interval; both ends are NaN when n is 1."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        """One repeat says nothing about the spread."""
        return self.n > 1

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False without an interval.

        One without width says no more: few test images make equal differences, not certain ones.
        """
        return self.has_interval and self.low < self.high and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[int | float | None], overlap: float = 0.0) -> Estimate | None:
    """Average over repeats; None when there is no repeat or the value is undefined in one of them.

    `overlap` is that of `mean_interval`.
    """
    defined = _defined(values)
    if not defined or len(defined) < len(values):
        return None
    mean, _, low, high = mean_interval(defined, overlap=overlap)
    return Estimate(mean=float(mean), low=float(low), high=float(high), n=len(defined))


def _defined(values: Iterable[int | float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def paired_difference(first: Repeats, second: Repeats, overlap: float = 0.0) -> Estimate | None:
    """Average first - second over the repeats that both have: the same split, so the same test images.

    `overlap` is that of `mean_interval`: without it, splits of one data set make differences look surer than they are.
    """
    shared = sorted(set(first) & set(second))
    pairs = [(first[repeat], second[repeat]) for repeat in shared]
    return estimate([None if a is None or b is None else a - b for a, b in pairs], overlap)


def unpaired_difference(first: Repeats, second: Repeats) -> Estimate | None:
    """Mean of first - mean of second, for repeats that have nothing to do with each other.

    Returns:
        An estimate whose n is the smaller of the two, or None when either mean is undefined.

    Source: Welch, Biometrika 34 (1947), 28-35.
    """
    ours, theirs = estimate(list(first.values())), estimate(list(second.values()))
    if ours is None or theirs is None:
        return None
    mean, n = ours.mean - theirs.mean, min(ours.n, theirs.n)
    if n == 1:
        return Estimate(mean=mean, low=math.nan, high=math.nan, n=n)
    # Squared standard errors of the two means.
    a, b = (statistics.variance(_defined(values.values())) / len(values) for values in (first, second))
    if a + b == 0:
        return Estimate(mean=mean, low=mean, high=mean, n=n)
    from scipy.stats import t

    freedom = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(a + b)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one kind of features, with its evaluations by split and repeat."""

    method: str
    features: str
    depth: int | None
    evaluations: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def repeats(self, split: str, metric: str, group: str | None = None) -> dict[int, int | float | None]:
        """Return a metric for each repeat of a split, over all test images or those of one group."""
        found = self.evaluations.get(split, {})
        return {
            repeat: (one["metrics"] if group is None else one["by_group"][group])[metric]
            for repeat, one in sorted(found.items())
            if group is None or group in one["by_group"]
        }

    def estimate(self, split: str, metric: str, group: str | None = None) -> Estimate | None:
        """Average a metric over the repeats of a split; None where this row has none.

        The interval is cut to 0..1, where all metrics are: that of two repeats reaches far beyond.
        """
        found = estimate(list(self.repeats(split, metric, group).values()))
        return found and dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))

    def confusion(self, split: str) -> list[list[int]]:
        """Sum the confusion matrices over the repeats of a split; rows are the true classes."""
        matrices = [one["confusion"] for one in self.evaluations.get(split, {}).values()]
        return [[sum(cells) for cells in zip(*lines, strict=True)] for lines in zip(*matrices, strict=True)]

    def chosen(self, split: str) -> list[tuple[str, int]]:
        """Count what validation chose over the repeats of a split, most frequent first."""
        choices = [sorted(one["chosen"].items()) for one in self.evaluations.get(split, {}).values()]
        texts = [", ".join(f"{name} {_short(value)}" for name, value in choice) for choice in choices]
        return Counter(text for text in texts if text).most_common()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def make_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Gather evaluations by method and features, in order of appearance with each method in one run.

    Raises:
        ValueError: two evaluations have the same method, features, split and repeat.
    """
    gathered: dict[tuple[str, str], dict[str, dict[int, Mapping[str, Any]]]] = {}
    depths: dict[tuple[str, str], int | None] = {}
    for one in evaluations:
        key = (one["method"], one["features"])
        depths[key] = one["depth"]
        repeats = gathered.setdefault(key, {}).setdefault(one["split"], {})
        if one["repeat"] in repeats:
            raise ValueError(f"two evaluations of {key} are repeat {one['repeat']} of {one['split']!r}; keep one")
        repeats[one["repeat"]] = one
    methods = list(dict.fromkeys(method for method, _ in gathered))
    rows = [Row(method=m, features=f, depth=depths[m, f], evaluations=found) for (m, f), found in gathered.items()]
    return sorted(rows, key=lambda row: methods.index(row.method))


def best(rows: Sequence[Row], split: str) -> Row | None:
    """Return the row with the highest mean accuracy on a split; None when no row was run on it."""
    means = [(found.mean, row) for row in rows if (found := row.estimate(split, "accuracy"))]
    return max(means, key=lambda pair: pair[0])[1] if means else None
