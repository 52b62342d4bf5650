"""The probes as estimators of scikit-learn, for notebooks and pipelines that have those already.

    from tljax.features.estimators import LogisticProbe
    LogisticProbe().fit(features, labels).score(other_features, other_labels)

Each chooses by cross-validation on what it is given, then fits all of it. As scikit-learn wants it, constructors take
any value and `fit` refuses it. Nothing else in tljax imports scikit-learn.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from tljax.data.splits import k_folds
from tljax.features.choosing import ProbeData
from tljax.features.logistic import WIDE_STRENGTHS
from tljax.features.probes import PROBES

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("tljax.features.estimators needs scikit-learn: pip install scikit-learn") from error


# scikit-learn reads the signature; equality and printing are its own. A field is any value, as it asks: what does not
# fit is for `fit` to refuse.
@dataclass(kw_only=True, eq=False, repr=False)
class _Probe(ClassifierMixin, BaseEstimator):
    """What all probes share.

    Args:
        num_folds: of the cross-validation that chooses.
        seed: of the folds, and of what the method draws.

    Attributes:
        classes_: the labels, sorted; columns of `predict_proba`.
        classifier_: of tljax, fitted.
        chosen_: what cross-validation chose.
        n_features_in_: number of features.
    """

    _method: ClassVar[str]
    num_folds: Any = 5
    seed: Any = 0

    def fit(self, X: Any, y: Any) -> "_Probe":
        """Choose by cross-validation, then fit everything.

        Args:
            X: [n d] features.
            y: [n] labels of any kind.

        Raises:
            ValueError: features that are not finite, fewer than two classes, or fewer examples than folds.
        """
        features, labels = cast(tuple[np.ndarray, np.ndarray], validate_data(self, X, y, dtype=np.float64))
        check_classification_targets(labels)
        self.classes_, positions = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs two classes or more, got only one class: {self.classes_[0]!r}"
            )
        rows = np.arange(len(positions))
        options = self.get_params(deep=False)
        seed, num_folds = options.pop("seed"), options.pop("num_folds")
        data = ProbeData(
            features=features.astype(np.float32),
            labels=positions.astype(np.int64),
            num_classes=len(self.classes_),
            folds=k_folds(rows, positions, num_folds, seed),
            train=rows,
            seed=seed,
        )
        self.classifier_, self.chosen_ = PROBES[self._method](data, **options)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each of `classes_`, [n k]."""
        check_is_fitted(self)
        features = cast(np.ndarray, validate_data(self, X, dtype=np.float64, reset=False))
        return self.classifier_.predict_proba(features.astype(np.float32))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of largest probability."""
        positions = self.predict_proba(X).argmax(axis=1)
        return self.classes_[positions]


@dataclass(kw_only=True, eq=False, repr=False)
class LogisticProbe(_Probe):
    """L2 logistic regression; see `probes.fit_logistic`."""

    _method = "logistic"
    strengths: Any = WIDE_STRENGTHS
    class_weighting: Any = None
    beta: Any = None


@dataclass(kw_only=True, eq=False, repr=False)
class RidgeProbe(_Probe):
    """Ridge regression on the classes; see `probes.fit_ridge`."""

    _method = "ridge"
    strengths: Any = WIDE_STRENGTHS
    use_leave_one_out: Any = True
    class_weighting: Any = None
    beta: Any = None


@dataclass(kw_only=True, eq=False, repr=False)
class KNNProbe(_Probe):
    """k nearest neighbours by cosine; see `probes.fit_knn`."""

    _method = "knn"
    neighbours: Any = (1, 5, 10, 20)
    temperature: Any = 0.07


@dataclass(kw_only=True, eq=False, repr=False)
class NearestMeanProbe(_Probe):
    """Nearest class mean; see `probes.fit_nearest_mean`."""

    _method = "nearest_mean"
    metric: Any = "euclidean"
    temperatures: Any = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(kw_only=True, eq=False, repr=False)
class MLPProbe(_Probe):
    """A network of one hidden layer; see `probes.fit_mlp`."""

    _method = "mlp"
    widths: Any = (64,)
    learning_rates: Any = (1e-3, 1e-2)
    weight_decays: Any = (0.01, 1.0)
    num_steps: Any = 100
    num_stops: Any = 10
    class_weighting: Any = None
    beta: Any = None
