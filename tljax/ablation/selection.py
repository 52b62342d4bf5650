"""Which candidate to take: means over folds, what cannot be told apart, and how scores rank what a probe ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

# In the order of tables and charts, with the names for people.
SCORE_NAMES = {
    "logme": "LogME",
    "h_score": "shrunk H-score",
    "transrate": "TransRate",
    "leep": "LEEP",
    "knn": "kNN, left out",
    "ridge": "ridge, left out",
}
# With fewer, resampling candidates says nothing.
LEAST_CANDIDATES = 5
NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One candidate: a stage of a model, with what it costs and how good it looks.

    Args:
        name: of the model and the stage.
        model: name of the model.
        accuracies: of the probe, one for each fold; all candidates have the same folds.
        scores: by name; one that the candidate cannot have is left out.
        width: number of features.
        params_m: params up to the stage, in millions.
        gflops: of one image up to the stage, a multiply-add as two.
        seconds: that running all images through the model took, all its stages together; None where the features were
            there already and nothing says.
    """

    name: str
    model: str
    accuracies: tuple[float, ...]
    scores: Mapping[str, float]
    width: int
    params_m: float
    gflops: float
    seconds: float | None

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean(self.accuracies))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, as if folds were independent."""
        return standard_error(self.accuracies)


def standard_error(values: Sequence[float]) -> float:
    """Return the sample standard deviation over the root of the number of values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def best_of(candidates: Sequence[Scored]) -> Scored:
    """Return the candidate with the highest mean accuracy; of equals the cheapest."""
    return max(candidates, key=lambda one: (one.mean, -one.gflops))


def gap(candidate: Scored, best: Scored) -> tuple[float, float]:
    """Return how far a candidate is below another over the same folds, and the standard error of that."""
    differences = np.subtract(best.accuracies, candidate.accuracies)
    return float(differences.mean()), standard_error(differences.tolist())


def level_with_best(candidates: Sequence[Scored]) -> list[Scored]:
    """Return the best candidate and those below it by no more than a standard error of the paired difference."""
    best = best_of(candidates)
    found = []
    for one in candidates:
        difference, error = gap(one, best)
        if one is best or difference <= error:
            found.append(one)
    return found


def recommended(candidates: Sequence[Scored]) -> Scored:
    """Return the cheapest candidate that is level with the best; of equally cheap ones the most accurate.

    Source:
        Breiman et al. 1984, Classification and Regression Trees, section 3.4.3: the rule of one standard error.
    """
    return min(level_with_best(candidates), key=lambda one: (one.gflops, -one.mean))


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """How a score ranks candidates against the probe, with 95% intervals from resampling the candidates.

    The ends are NaN for fewer than `LEAST_CANDIDATES`.
    """

    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    kendall: float
    kendall_low: float
    kendall_high: float


def score_names(candidates: Sequence[Scored]) -> list[str]:
    """Return the scores that at least one candidate has."""
    return [name for name in SCORE_NAMES if any(name in one.scores for one in candidates)]


def rank_correlations(candidates: Sequence[Scored], seed: int) -> dict[str, RankCorrelation]:
    """Compare the order of each score with that of the probe; scores of fewer than three candidates are left out."""
    found = {}
    for name in score_names(candidates):
        held = [one for one in candidates if name in one.scores]
        if len(held) >= 3:
            values = np.array([[one.scores[name], one.mean] for one in held]).T
            found[name] = _correlate(values, np.random.default_rng(seed))
    return found


def _correlate(values: np.ndarray, generator: np.random.Generator) -> RankCorrelation:
    n = values.shape[1]
    ends = [math.nan] * 4
    if n >= LEAST_CANDIDATES:
        first, second = values[:, generator.integers(0, n, (NUM_RESAMPLES, n))]
        # A resample that is one candidate again and again has no order.
        resampled = (spearman(first, second), kendall(first, second))
        ends = [float(end) for each in resampled for end in np.nanpercentile(each, (2.5, 97.5))]
    return RankCorrelation(
        n=n,
        spearman=float(spearman(values[0], values[1])),
        spearman_low=ends[0],
        spearman_high=ends[1],
        kendall=float(kendall(values[0], values[1])),
        kendall_low=ends[2],
        kendall_high=ends[3],
    )


def score_agreement(candidates: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlation of each score with each, over the candidates that have both, three or more."""
    names, table = score_names(candidates), {}
    for one in names:
        table[one] = {}
        for other in names:
            held = [item.scores for item in candidates if one in item.scores and other in item.scores]
            if len(held) >= 3:
                table[one][other] = float(spearman(*np.array([[item[one], item[other]] for item in held]).T))
    return table


def spearman(first: Float[np.ndarray, "*b n"], second: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """Return the correlation of ranks along the last axis, ties sharing the mean rank; NaN where all are tied."""
    # A rank less the mean rank is half of how many are below, less how many are above.
    x, y = (_orders(values).sum(axis=-1) for values in (first, second))
    return _ratio((x * y).sum(axis=-1), np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1)))


def kendall(first: Float[np.ndarray, "*b n"], second: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """Return tau-b along the last axis: pairs in one order less pairs in the other, over those not tied."""
    x, y = (_orders(values) for values in (first, second))
    total = np.sqrt(np.abs(x).sum(axis=(-2, -1)) * np.abs(y).sum(axis=(-2, -1)))
    return _ratio((x * y).sum(axis=(-2, -1)), total)


def _orders(values: np.ndarray) -> np.ndarray:
    """Return the order of each pair along the last axis: 1, 0 or -1."""
    return np.sign(values[..., :, None] - values[..., None, :])


def _ratio(part: Any, whole: Any) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
