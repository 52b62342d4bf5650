"""The estimators: scikit-learn's own checks, and the same predictions as the probes that they are."""

import pickle
from typing import Any, cast

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from tests.test_features_probes import OPTIONS, TEST, make_data
from tljax.data.splits import k_folds
from tljax.features import logistic, mlp
from tljax.features.choosing import ProbeData
from tljax.features.estimators import KNNProbe, LogisticProbe, MLPProbe, NearestMeanProbe, RidgeProbe
from tljax.features.probes import PROBES

ESTIMATORS = {
    "logistic": LogisticProbe,
    "ridge": RidgeProbe,
    "knn": KNNProbe,
    "nearest_mean": NearestMeanProbe,
    "mlp": MLPProbe,
}
# Few options and folds: the checks fit dozens of times.
SMALL = (
    LogisticProbe(strengths=(0.1, 0.01), num_folds=2),
    RidgeProbe(strengths=(1.0, 0.1)),
    KNNProbe(neighbours=(1,), num_folds=2),
    NearestMeanProbe(num_folds=2),
    MLPProbe(widths=(8,), learning_rates=(0.1,), weight_decays=(0.01,), num_steps=60, num_stops=1, num_folds=2),
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")  # of checks that need pandas
@pytest.mark.parametrize("estimator", SMALL, ids=lambda estimator: type(estimator).__name__)
def test_pass_the_checks_of_scikit_learn(monkeypatch, estimator):
    # So that the many small shapes of the checks share compiled programs.
    for module in (logistic, mlp):
        monkeypatch.setattr(module, "_ROW_MULTIPLE", 256)
        monkeypatch.setattr(module, "_COLUMN_MULTIPLE", 32)
    results = check_estimator(estimator, on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    assert len(results) > 40


@pytest.mark.parametrize("method", ["ridge", "nearest_mean", "knn"])
def test_are_the_probes(method):
    data = make_data()
    estimator = ESTIMATORS[method](**OPTIONS[method], num_folds=3, seed=5)
    names = np.array(["cat", "dog", "eel"])
    features, labels = data.of(data.train)
    fitted = cast(Any, clone(estimator)).fit(features, names[labels])
    rows = np.arange(len(labels))
    folds = k_folds(rows, labels, 3, 5)
    alike = ProbeData(features=features, labels=labels, num_classes=3, folds=folds, train=rows, seed=5)
    classifier, chosen = PROBES[method](alike, **OPTIONS[method])
    wanted = classifier.predict_proba(data.features[TEST])
    assert fitted.chosen_ == chosen
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(data.features[TEST]), wanted)
    accuracy = (names[wanted.argmax(axis=1)] == names[data.labels[TEST]]).mean()
    assert fitted.score(data.features[TEST], names[data.labels[TEST]]) == accuracy


def test_fewer_examples_than_folds_are_refused():
    with pytest.raises(ValueError, match="k is 5, wanted 2 to 4"):
        RidgeProbe(use_leave_one_out=False).fit(np.eye(4), [0, 1, 0, 1])
