"""The cross-validated probe against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.test_features_scores import make
from tljax.data.splits import k_folds
from tljax.features.held_out import fold_accuracies

STRENGTHS = (1.0, 0.1, 0.01)


def test_each_fold_has_the_strength_that_the_others_would_choose():
    features, labels = make(150, 12, 2, shift=0.5)
    features = features.astype(np.float32)
    folds = k_folds(np.arange(150), labels, 3, 0)
    losses, hits = np.empty((3, 3)), np.empty((3, 3))
    for fold, (train, out) in enumerate(folds):
        mean, scale = features[train].mean(axis=0), features[train].std(axis=0)
        for index, strength in enumerate(STRENGTHS):
            settings = {"C": 1 / (strength * len(train)), "tol": 1e-8, "max_iter": 1000}
            fit = LogisticRegression(**settings).fit((features[train] - mean) / scale, labels[train])
            right = fit.predict_proba((features[out] - mean) / scale)[np.arange(len(out)), labels[out]]
            losses[fold, index], hits[fold, index] = -np.log(right).mean(), (right > 0.5).mean()
    wanted = []
    for fold in range(3):
        choice = losses[np.arange(3) != fold].mean(axis=0).argmin()
        wanted.append(hits[fold, choice])
    assert fold_accuracies(features, labels, 2, folds, STRENGTHS) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="there are 1 folds, wanted two or more"):
        fold_accuracies(features, labels, 2, folds[:1], STRENGTHS)
