"""What every task opens first: the data, the pretrained net, the split."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from tljax.data.sources import Source, open_source
from tljax.data.splits import (
    Fold,
    Split,
    combine_strata,
    grouped_split,
    hashed_seed,
    k_folds,
    load_split,
    stratified_split,
)
from tljax.metrics import classification_metrics, confusion_matrix
from tljax.paths import did_you_mean
from tljax.plain import fingerprint
from tljax.tasks.sections import call
from tljax.weights import Pretrained, load

log = logging.getLogger(__name__)

SPLITS = ("stratified", "grouped")
# In the run directory.
SPLIT = "split.npz"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Data and pretrained net of a run."""

    source: Source
    pretrained: Pretrained

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""
        return len(self.source.class_names)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the names in the config stand for: files can change under their names."""
        source, architecture = self.source, cast(Any, self.pretrained.net.architecture)
        columns = {name: column.tolist() for name, column in source.columns.items()}
        return {
            "params": self.pretrained.fingerprint(),
            "net": dataclasses.asdict(architecture),
            "preprocess": self.pretrained.preprocess.describe(),
            "images": source.fingerprint,
            "labels": fingerprint([list(source.class_names), source.labels, source.weights, columns]),
        }


def open_inputs(config: Mapping[str, Any]) -> Inputs:
    """Open `config.data`, and `config.model` with a new head for its classes."""
    source = call("data", config, open_source)
    pretrained = call("model", config, load, num_classes=len(source.class_names))
    log.info("%s: %d images, %s", source.name, len(source), _count_classes(source))
    log.info("%s at %s px: %s", pretrained.name, pretrained.preprocess.size, pretrained.report)
    return Inputs(source=source, pretrained=pretrained)


def _count_classes(source: Source) -> str:
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return ", ".join(f"{count} {name}" for name, count in zip(source.class_names, counts, strict=True))


def make_split(
    source: Source,
    seed: int,
    *,
    kind: str,
    repeat: int,
    test_fraction: float,
    val_fraction: float,
    strata: tuple[str, ...] = ("label",),
    groups: str | None = None,
) -> Split:
    """Divide a source into train, validation and test.

    Args:
        source: the data.
        seed: the run's seed.
        kind: "stratified" keeps the proportions of the strata; "grouped" also keeps groups whole.
        repeat: which of many such splits.
        test_fraction: of all examples, or of all groups.
        val_fraction: likewise.
        strata: columns of the source, or "label", whose combinations are the strata. A grouped split uses
            those that have one value per group.
        groups: column of the source with what must stay whole; needed by "grouped".

    Raises:
        ValueError: an unknown kind or column, or a grouped split without groups.
    """
    table, membership = _strata_and_groups(source, kind, strata, groups)
    split_seed = hashed_seed(seed, f"repeat {repeat}")
    if membership is None:
        return stratified_split(table, split_seed, test_fraction, val_fraction)
    return grouped_split(membership, table, split_seed, test_fraction, val_fraction)


def make_folds(
    source: Source,
    indices: np.ndarray,
    num_folds: int,
    seed: int,
    *,
    kind: str,
    repeat: int,
    test_fraction: float,
    val_fraction: float,
    strata: tuple[str, ...] = ("label",),
    groups: str | None = None,
) -> list[Fold]:
    """Deal images into folds as `make_split` divides them: by the same strata, and the same groups kept whole.

    Args:
        source: the data.
        indices: which images.
        num_folds: how many folds, at least 2.
        seed: the run's seed.
        kind: as for `make_split`.
        repeat: as for `make_split`.
        test_fraction: of the split; folds have none.
        val_fraction: likewise.
        strata: as for `make_split`.
        groups: as for `make_split`.

    Raises:
        ValueError: as `make_split` and `k_folds`.
    """
    del test_fraction, val_fraction
    table, membership = _strata_and_groups(source, kind, strata, groups)
    of_groups = None if membership is None else membership[indices]
    return k_folds(indices, table[indices], num_folds, hashed_seed(seed, f"folds {repeat}"), groups=of_groups)


def _strata_and_groups(
    source: Source, kind: str, strata: Sequence[str], groups: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the stratum of each image, and for a grouped split its group."""
    columns = {**source.columns, "label": source.labels}
    unknown = [name for name in (*strata, *([groups] if groups else [])) if name not in columns]
    if unknown:
        raise ValueError(
            f"source {source.name!r} has no column {unknown[0]!r}{did_you_mean(unknown[0], columns)}; "
            f"it has {', '.join(sorted(columns))}"
        )
    if kind == "stratified":
        return combine_strata(*(columns[name] for name in strata)), None
    if kind != "grouped":
        raise ValueError(f"no split kind {kind!r}{did_you_mean(kind, SPLITS)}; kinds are {', '.join(SPLITS)}")
    if groups is None:
        raise ValueError("a grouped split needs config.split.groups, the column with what must stay whole")
    constant = [name for name in strata if _is_constant_within(columns[name], columns[groups])]
    table = combine_strata(*(columns[name] for name in constant)) if constant else np.zeros(len(source), np.int64)
    return table, columns[groups]


def _is_constant_within(values: np.ndarray, groups: np.ndarray) -> bool:
    return len(np.unique(combine_strata(values, groups))) == len(np.unique(groups))


def open_split(config: Mapping[str, Any], source: Source, workdir: Path) -> Split:
    """Return the split of a run directory, or the one that `config.split` describes.

    Raises:
        ValueError: there is nothing to train on, or nothing to test on.
    """
    path = workdir / SPLIT
    split = load_split(path, source) if path.exists() else call("split", config, make_split, source, config["seed"])
    empty = [name for name in ("train", "test") if not len(getattr(split, name))]
    if empty:
        raise ValueError(
            f"the split has no {' and no '.join(empty)} images of {len(source)}; change config.split.test_fraction or "
            "config.split.val_fraction, or bring more images"
        )
    return split


def check_evaluation(source: Source, *, group_by: str | None = None) -> None:
    """Find mistakes in `config.evaluate` before there is anything to evaluate.

    Raises:
        ValueError: the source has no such column.
    """
    if group_by is not None and group_by not in source.columns:
        raise ValueError(
            f"source {source.name!r} has no column {group_by!r}{did_you_mean(group_by, source.columns)}; "
            f"it has {', '.join(sorted(source.columns))}"
        )


def evaluate(
    source: Source, indices: np.ndarray, probabilities: np.ndarray, *, group_by: str | None = None
) -> dict[str, Any]:
    """Compare predicted probabilities with the labels.

    Args:
        source: the data.
        indices: which examples were predicted.
        probabilities: of every class, a row per example.
        group_by: column whose values get metrics of their own.

    Returns:
        "n_test", "metrics", "by_group" {value: metrics} and "confusion" (rows are true classes).
    """

    def metrics(rows: np.ndarray) -> dict[str, float]:
        chosen = indices[rows]
        return classification_metrics(probabilities[rows], source.labels[chosen], source.weights[chosen])

    check_evaluation(source, group_by=group_by)
    column = np.array([]) if group_by is None else source.columns[group_by][indices]
    by_group = {str(value): metrics(np.flatnonzero(column == value)) for value in np.unique(column)}
    return {
        "n_test": len(indices),
        "metrics": metrics(np.arange(len(indices))),
        "by_group": by_group,
        "confusion": confusion_matrix(probabilities, source.labels[indices]),
    }
