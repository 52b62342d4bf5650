"""How good predictions are, and how sure a mean over repeats is."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer


def classification_metrics(
    probabilities: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Compare class probabilities with labels.

    Args:
        probabilities: a row per example; the first of equal largest ones is the prediction.
        labels: positions of the true classes.
        weights: confidence of each label, not negative, not all 0.

    Returns:
        "accuracy"; "weighted_accuracy", where an example counts by its weight; "balanced_accuracy", the mean
        recall, and "macro_f1", the mean F1, of the classes that are among the labels (F1 also of those only
        predicted); "roc_auc", for two classes that of class 1, for more the mean of one class against the
        rest. A ROC AUC that needs a class which no label has is NaN.

    Raises:
        ValueError: no examples, weights that sum to 0, probabilities that are not finite, or labels that have none.
    """
    _check(probabilities, weights)
    is_right = probabilities.argmax(axis=1) == labels
    confusion = confusion_matrix(probabilities, labels)
    hits, truths, guesses = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall, f1 = hits / truths, 2 * hits / (truths + guesses)
    return {
        "accuracy": float(is_right.mean()),
        "weighted_accuracy": float(np.average(is_right, weights=weights)),
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(np.nanmean(f1)),
        "roc_auc": _roc_auc(probabilities, labels),
    }


def log_loss(probabilities: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"]) -> float:
    """Return the mean of `-sum_k target_k log probability_k`, which is least where the probabilities are the targets.

    Probabilities are raised to the spacing of their numbers at 1, as in scikit-learn: one that was rounded to 0 would
    make the mean infinite.
    """
    least = np.finfo(probabilities.dtype).eps
    logarithms = np.log(probabilities.clip(min=least).astype(np.float64))
    return float(-(targets * logarithms).sum(axis=1).mean())


def confusion_matrix(
    probabilities: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"]
) -> Int[np.ndarray, "k k"]:
    """Count examples by true class (rows) and predicted class (columns).

    Raises:
        ValueError: a label is not the position of a column.
    """
    num_classes = probabilities.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, wanted 0 to {num_classes - 1}")
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


def _roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)
    return float(np.mean([_binary_roc_auc(probabilities[:, index], labels == index) for index in classes]))


def _binary_roc_auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann and Whitney 1947)."""
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def multi_label_metrics(
    probabilities: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], weights: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Compare the probabilities of independent labels with the labels.

    Args:
        probabilities: of each label on its own; a label is predicted from 0.5 on.
        targets: from 0 to 1; an example has a label from 0.5 on.
        weights: confidence in the labels of each example, not negative, not all 0.

    Returns:
        "mean_average_precision" and "roc_auc", means over the labels that some examples have (and, for the ROC AUC,
        some have not); "macro_f1", the mean over the labels that some have or some are predicted to have, and
        "micro_f1" over all decisions; "subset_accuracy", the share of examples with all labels right, and
        "weighted_subset_accuracy", where an example counts by its weight. A mean over no label is NaN.

    Raises:
        ValueError: no examples, weights that sum to 0, or probabilities that are not finite.
    """
    _check(probabilities, weights)
    has, predicted = targets >= 0.5, probabilities >= 0.5
    is_right = (has == predicted).all(axis=1)
    hits, truths, guesses = (has & predicted).sum(axis=0), has.sum(axis=0), predicted.sum(axis=0)
    with np.errstate(invalid="ignore"):
        f1, micro_f1 = 2 * hits / (truths + guesses), 2 * hits.sum() / (truths.sum() + guesses.sum())
    aucs = [_binary_roc_auc(scores, of_label) for scores, of_label in zip(probabilities.T, has.T, strict=True)]
    return {
        "mean_average_precision": _mean_of_known(average_precisions(probabilities, targets)),
        "roc_auc": _mean_of_known(np.array(aucs)),
        "macro_f1": _mean_of_known(f1),
        "micro_f1": float(micro_f1),
        "subset_accuracy": float(is_right.mean()),
        "weighted_subset_accuracy": float(np.average(is_right, weights=weights)),
    }


def average_precisions(
    probabilities: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Return, for each label, the mean over the examples that have it of the precision down to their rank.

    Examples of equal probability have one rank, the last of theirs. NaN where no example has the label.
    """
    columns = zip(probabilities.T, (targets >= 0.5).T, strict=True)
    return np.array([_average_precision(scores, has) for scores, has in columns])


def _average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    if not is_positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits, scores = np.cumsum(is_positive[order]), scores[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / hits[-1])


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _check(probabilities: np.ndarray, weights: np.ndarray) -> None:
    if len(weights) == 0 or not weights.sum() > 0:
        raise ValueError(f"{len(weights)} examples with weights that sum to {weights.sum()}: nothing to measure")
    if not np.isfinite(probabilities).all():
        broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise ValueError(
            f"the probabilities of {broken} of {len(weights)} examples are not finite: did training diverge?"
        )


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, overlap: float = 0.0
) -> tuple[float, float, float, float]:
    """Return mean, sample standard deviation and the ends of Student's t interval of the mean.

    All but the mean are NaN for a single value: one repeat says nothing of the spread.

    Args:
        values: one for each repeat.
        confidence: of the interval.
        overlap: 0 for independent values. For splits of the same examples, drawn again and again, the number of test
            examples over that of training examples: it is added to 1 / n in the variance of the mean.

    Source:
        Nadeau and Bengio 2003, Machine Learning 52, 239-281, for `overlap`: the corrected resampled t-test.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    from scipy.stats import t

    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * deviation * math.sqrt(1 / len(values) + overlap)
    return mean, deviation, mean - half, mean + half


def bootstrap_intervals(
    confusion: Int[np.ndarray, "k k"], *, confidence: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of "accuracy", "balanced_accuracy" and "macro_f1", over draws of test examples.

    To draw as many examples with replacement is to draw counts of the cells of their confusion matrix.

    Args:
        confusion: counts by true class (rows) and predicted class (columns).
        confidence: of the intervals.
        num_draws: how many times the examples are drawn.
        seed: of the draws.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    truth, guess = np.nonzero(confusion)
    counts = confusion[truth, guess]
    generator = np.random.default_rng(seed)
    values: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": [], "macro_f1": []}
    size = len(confusion)
    for _ in range(num_draws):
        drawn = generator.multinomial(counts.sum(), counts / counts.sum())
        truths, guesses, hits = (
            np.bincount(of[where], weights=drawn[where], minlength=size)
            for of, where in ((truth, slice(None)), (guess, slice(None)), (truth, truth == guess))
        )
        with np.errstate(invalid="ignore"):
            recall, f1 = hits / truths, 2 * hits / (truths + guesses)
        values["accuracy"].append(float(hits.sum() / counts.sum()))
        values["balanced_accuracy"].append(float(np.nanmean(recall)))
        values["macro_f1"].append(float(np.nanmean(f1)))
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    return {
        name: (float(low), float(high)) for name, found in values.items() for low, high in [np.quantile(found, ends)]
    }
