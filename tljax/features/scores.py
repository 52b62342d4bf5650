"""How well features would transfer, without training on them: LogME, shrunk H-score, LEEP, TransRate.

Everything is computed in float64 on the host. With n examples, d features and m = min(n, d), LogME and H-score cost
a spectrum each, some n d m + 9 m^3 multiply-adds (a second for 2,624 x 768), TransRate twice n d m + m^3 / 3, and LEEP
n z k for z source classes.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer

from tljax.features.linear import standardisation
from tljax.features.spectrum import left_spectrum

Features = Float[np.ndarray, "n d"]
Labels = Integer[np.ndarray, " n"]

# Huang et al. 2022, arXiv:2106.09362, the code in the paper.
TRANSRATE_DISTORTION = 1e-4
# The fixed point of LogME has come to rest where its evidence, a log-density an example, moves less.
_LOGME_TOLERANCE = 1e-12
_LOGME_STEPS = 10_000


def logme(features: Features, labels: Labels) -> float:
    """Return the log evidence of a Bayesian linear model of one-hot labels, a mean over examples and classes.

    A class is y ~ N(F w, 1 / beta) with w ~ N(0, 1 / alpha), at the alpha and beta that make y most likely. There is no
    intercept: features are taken as they are, and centred ones score far lower.

    Args:
        features: a row per example.
        labels: positions of the classes; a class without examples counts for nothing.

    Raises:
        ValueError: features that are not finite, or fewer than two classes among the labels.

    Source:
        You et al. 2021, arXiv:2102.11005, algorithm 1, iterated to rest and without its 1e-5 in two denominators.
    """
    rows, classes = _checked(features, labels)
    left, squares = left_spectrum(rows)
    return float(np.mean([_evidence(left, squares, (labels == one).astype(np.float64)) for one in classes]))


def _evidence(left: np.ndarray, squares: np.ndarray, y: np.ndarray) -> float:
    """Maximise the log evidence of one class over alpha and beta, with t = alpha / beta; per example."""
    n = len(y)
    energies = (left.T @ y) ** 2
    outside = max(float(y @ y - energies.sum()), 0.0)  # what no weights reach
    t, evidence, found = 1.0, -np.inf, -np.inf
    for _ in range(_LOGME_STEPS):
        kept = squares / (squares + t)
        size = float((kept * energies / (squares + t)).sum())  # |w|^2
        residual = float(((1 - kept) ** 2 * energies).sum()) + outside
        # At the best beta for this t: n / beta = residual + t |w|^2.
        beta = n / max(residual + t * size, np.finfo(np.float64).tiny)
        found = 0.5 * (n * np.log(beta / (2 * np.pi)) - np.log1p(squares / t).sum() - n) / n
        if abs(found - evidence) < _LOGME_TOLERANCE or size == 0:
            return float(found)
        evidence, gamma = found, float(kept.sum())
        # MacKay's fixed point alpha = gamma / |w|^2, beta = (n - gamma) / residual.
        t = gamma / size * residual / max(n - gamma, np.finfo(np.float64).tiny)
        if not 0 < t < np.inf:
            break
    return float(found)


def shrunk_h_score(features: Features, labels: Labels) -> float:
    """Return tr(C^-1 (1 - a) B): B the covariance of the class means, C that of the features, shrunk by a.

    The shrinkage is Ledoit and Wolf's, towards a multiple of the identity. The value lies between 0 and the number of
    classes less one, where classes are far apart along directions of little spread; without shrinkage it grows with the
    number of features.

    Args:
        features: a row per example; they are standardised, so that the units of none decide how much is shrunk.
        labels: positions of the classes.

    Raises:
        ValueError: as `logme`.

    Source:
        Bao et al. 2019 (ICIP); Ibrahim et al. 2022, arXiv:2110.06893, equation 5. Both covariances are
        divided by n; there B, and not C, is divided by n - 1.
    """
    rows, classes = _checked(features, labels)
    n, width = rows.shape
    # Directions without spread, which are left out, have no class means in them either.
    left, squares = left_spectrum((rows - rows.mean(axis=0)) / standardisation(rows)[1])
    shrinkage, mean_variance = _ledoit_wolf(left, squares, width)
    spread = (1 - shrinkage) * squares / n + shrinkage * mean_variance
    total = 0.0
    for one in classes:
        # The mean of a class, times its root count, along the principal directions.
        mean = left[labels == one].sum(axis=0) / np.sqrt((labels == one).sum())
        total += float((squares * mean**2 / spread).sum())
    return (1 - shrinkage) * total / n


def _ledoit_wolf(left: np.ndarray, squares: np.ndarray, width: int) -> tuple[float, float]:
    """Return the shrinkage of a covariance towards the mean variance, and that mean.

    Source:
        Ledoit and Wolf 2004, Journal of Multivariate Analysis 88, 365-411, in the form of scikit-learn.
    """
    n = len(left)
    variances = squares / n
    mean = float(variances.sum()) / width
    squared_lengths = left**2 @ squares
    distance = float((variances**2).sum()) - width * mean**2
    noise = (float((squared_lengths**2).sum()) / n - float((variances**2).sum())) / n
    return (min(noise, distance) / distance if distance > 0 and noise > 0 else 0.0), mean


def transrate(features: Features, labels: Labels) -> float:
    """Return the coding rate of centred features less the mean rate of the classes: a mutual information in nats.

    It grows with the number of features and with their scale: compare features of one kind.

    Args:
        features: a row per example.
        labels: positions of the classes.

    Raises:
        ValueError: as `logme`.

    Source:
        Huang et al. 2022, arXiv:2106.09362, the code in the paper, which weighs all classes alike.
    """
    rows, classes = _checked(features, labels)
    centred = rows - rows.mean(axis=0)
    within = np.mean([_coding_rate(centred[labels == one]) for one in classes])
    return _coding_rate(centred) - float(within)


def _coding_rate(rows: np.ndarray) -> float:
    """Return half the log-determinant of I + rows^T rows / (n distortion), by the smaller of two equal ones."""
    n, d = rows.shape
    gram = (rows.T @ rows if d <= n else rows @ rows.T) / (n * TRANSRATE_DISTORTION)
    return 0.5 * float(np.linalg.slogdet(gram + np.eye(len(gram)))[1])


def leep(probabilities: Float[np.ndarray, "n z"], labels: Labels) -> float:
    """Return the mean log-likelihood of labels guessed from source classes through their empirical joint distribution.

    Args:
        probabilities: that the source's classifier gives its own classes for each target image; rows sum to 1.
        labels: positions of the target classes.

    Raises:
        ValueError: as `logme`.

    Source:
        Nguyen et al. 2020, arXiv:2002.12462, equations 1 and 2.
    """
    rows, classes = _checked(probabilities, labels)
    joint = np.stack([rows[labels == one].sum(axis=0) for one in classes])  # y z
    given = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    guesses = rows @ given.T
    right = guesses[np.arange(len(rows)), np.searchsorted(classes, labels)]
    return float(np.log(right).mean())


# Of features alone; LEEP needs the scores of a source head.
SCORES: dict[str, Callable[[Features, Labels], float]] = {
    "logme": logme,
    "h_score": shrunk_h_score,
    "transrate": transrate,
}


def _checked(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values in float64 and the classes that occur, in order."""
    rows, classes = np.asarray(values, np.float64), np.unique(labels)
    if not np.isfinite(rows).all():
        broken = int((~np.isfinite(rows)).any(axis=1).sum())
        raise ValueError(f"{broken} of {len(rows)} rows are not finite; extract the features again")
    if len(classes) < 2:
        raise ValueError(f"the labels have {len(classes)} class, wanted two or more to tell apart")
    return rows, classes
