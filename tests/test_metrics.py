import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from tljax.metrics import (
    average_precisions,
    classification_metrics,
    confusion_matrix,
    log_loss,
    mean_interval,
    multi_label_metrics,
)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_equal_scikit_learn(num_classes, seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    probabilities = rng.dirichlet(np.ones(num_classes), 80).round(1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=80 - num_classes)])
    weights = rng.choice([1, 1 / 3, 2 / 3], 80)
    predicted = probabilities.argmax(axis=1)
    got = classification_metrics(probabilities, labels, weights)
    scores = probabilities[:, 1] if num_classes == 2 else probabilities
    wanted = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "weighted_accuracy": sklearn_metrics.accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "roc_auc": sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr"),
    }
    assert got == pytest.approx(wanted, abs=1e-12)
    np.testing.assert_array_equal(
        confusion_matrix(probabilities, labels), sklearn_metrics.confusion_matrix(labels, predicted)
    )


def test_classes_absent_from_the_labels():
    probabilities = np.eye(3)[[0, 0, 1, 2]]
    got = classification_metrics(probabilities, np.array([0, 0, 1, 1]), np.ones(4))
    assert got["balanced_accuracy"] == 0.75  # of classes 0 and 1
    assert got["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # class 2 was predicted, wrongly
    assert math.isnan(got["roc_auc"])


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="0 examples"):
        classification_metrics(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))


def test_predictions_of_a_diverged_net_are_refused():
    probabilities = np.full((4, 2), 0.5)
    probabilities[1] = np.nan
    with pytest.raises(ValueError, match="1 of 4 examples are not finite"):
        classification_metrics(probabilities, np.array([0, 1, 0, 1]), np.ones(4))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_without_a_probability_are_refused(label):
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        classification_metrics(np.full((2, 2), 0.5), np.array([0, label]), np.ones(2))


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_multi_label_metrics_equal_scikit_learn(num_classes, seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties, and some at 0.5.
    probabilities = rng.uniform(size=(60, num_classes)).round(1)
    targets = rng.choice([0.0, 0.2, 0.5, 1.0], (60, num_classes))
    weights = rng.choice([1, 1 / 3, 2 / 3], 60)
    has, predicted = (targets >= 0.5).astype(int), (probabilities >= 0.5).astype(int)
    is_right = (has == predicted).all(axis=1)
    wanted = {
        "mean_average_precision": sklearn_metrics.average_precision_score(has, probabilities, average="macro"),
        "roc_auc": sklearn_metrics.roc_auc_score(has, probabilities, average="macro"),
        "macro_f1": sklearn_metrics.f1_score(has, predicted, average="macro" if num_classes > 1 else "binary"),
        "micro_f1": sklearn_metrics.f1_score(has.ravel(), predicted.ravel()),
        "subset_accuracy": sklearn_metrics.accuracy_score(has, predicted),
        "weighted_subset_accuracy": np.sum(weights * is_right) / np.sum(weights),
    }
    assert multi_label_metrics(probabilities, targets, weights) == pytest.approx(wanted, abs=1e-12)
    columns = zip(has.T, probabilities.T, strict=True)
    each = [sklearn_metrics.average_precision_score(*column) for column in columns]
    np.testing.assert_allclose(average_precisions(probabilities, targets), each, atol=1e-12)


def test_labels_that_no_example_has_are_left_out_of_means():
    targets = np.array([[1, 0, 1], [0, 0, 1]], float)
    probabilities = np.array([[0.9, 0.1, 0.9], [0.6, 0.2, 0.8]])
    got = multi_label_metrics(probabilities, targets, np.ones(2))
    # Of labels 0 and 2; label 1 has no positive, label 2 no negative, and label 1 is neither there nor predicted.
    assert (got["mean_average_precision"], got["roc_auc"]) == (1.0, 1.0)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    nothing = multi_label_metrics(probabilities[:, 1:2], targets[:, 1:2], np.ones(2))
    assert nothing["subset_accuracy"] == 1.0
    assert all(math.isnan(nothing[name]) for name in ("mean_average_precision", "roc_auc", "macro_f1", "micro_f1"))


def test_log_loss_of_soft_targets_is_least_at_the_targets():
    rng = np.random.default_rng(0)
    targets, probabilities = rng.dirichlet(np.ones(3), 20), rng.dirichlet(np.ones(3), 20).astype(np.float32)
    wanted = -np.mean(np.sum(targets * np.log(probabilities.astype(np.float64)), axis=1))
    assert log_loss(probabilities, targets) == pytest.approx(wanted, rel=1e-12)
    labels = targets.argmax(axis=1)
    exact = rng.dirichlet(np.ones(3), 20)
    of_labels = sklearn_metrics.log_loss(labels, exact)
    assert log_loss(exact, np.eye(3)[labels]) == pytest.approx(of_labels, rel=1e-12)
    assert log_loss(targets, targets) < log_loss(probabilities, targets)
    assert math.isfinite(log_loss(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])))


def test_interval_equals_scipy_and_needs_two_values():
    values = [0.81, 0.84, 0.79, 0.86]
    mean, deviation, low, high = mean_interval(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values)))
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    # Resampled splits: the variance of the mean is s^2 (1/n + test/train).
    _, _, low, high = mean_interval(values, overlap=0.5)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 3) * deviation * math.sqrt(1 / 4 + 0.5))
    mean, *rest = mean_interval([0.9])
    assert mean == 0.9
    assert all(map(math.isnan, rest))
