"""What every task opens first: the data, the pretrained net, the split."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from tljax.data.label_split import label_split
from tljax.data.sources import SOURCES, Source, has_labels, source_opener
from tljax.data.splits import Fold, Split, grouped_split, hashed_seed, k_folds, load_split, stratified_split
from tljax.data.strata import has_values, split_columns, strata_and_groups
from tljax.data.subsets import hold_out, keep_only, limit_train
from tljax.plain import fingerprint
from tljax.tasks.sections import call
from tljax.weights import Pretrained, load

log = logging.getLogger(__name__)

# In the run directory.
SPLIT = "split.npz"
CLASSES = "classes.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Data and pretrained net of a run.

    Args:
        source: the data.
        pretrained: the net.
        opening_s: seconds that it took to open each, for the record.
    """

    source: Source
    pretrained: Pretrained
    opening_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""
        return len(self.source.class_names)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the names in the config stand for: files can change under their names."""
        source, architecture = self.source, cast(Any, self.pretrained.net.architecture)
        columns = {name: column.tolist() for name, column in source.columns.items()}
        # Only where there are any, so that runs without them stay what they are.
        targets = [] if source.targets is None else [source.is_multi_label, source.targets]
        return {
            "params": self.pretrained.fingerprint(),
            "net": dataclasses.asdict(architecture),
            "preprocess": self.pretrained.preprocess.describe(),
            "images": source.fingerprint,
            "labels": fingerprint([list(source.class_names), source.labels, source.weights, columns, *targets]),
        }


def open_inputs(config: Mapping[str, Any]) -> Inputs:
    """Open `config.data`, and `config.model` with a new head for its classes."""
    began = time.perf_counter()
    source = open_data(config)
    data_at = time.perf_counter()
    pretrained = call("model", config, load, num_classes=len(source.class_names))
    opening_s = {"open data": data_at - began, "load weights": time.perf_counter() - data_at}
    log.info("%s: %d images, %s", source.name, len(source), _count_classes(source))
    log.info("%s at %s px: %s", pretrained.name, pretrained.preprocess.size, pretrained.report)
    return Inputs(source=source, pretrained=pretrained, opening_s=opening_s)


def open_data(config: Mapping[str, Any]) -> Source:
    """Open `config.data`: the data source that it names, by its other keys.

    Raises:
        ValueError: an unknown or no name, or keys that do not fit the data source.
    """
    settings = dict(config["data"])
    if "name" not in settings:
        raise ValueError(f"config.data: key 'name' is missing, the data source; known: {sorted(SOURCES)}")
    return call("data", {"data": settings}, source_opener(settings.pop("name")))


def _count_classes(source: Source) -> str:
    if source.is_multi_label:
        counts = has_labels(source).sum(axis=0)
    else:
        counts = np.bincount(source.labels, minlength=len(source.class_names))
    return ", ".join(f"{count} {name}" for name, count in zip(source.class_names, counts, strict=True))


def make_split(
    source: Source,
    run_seed: int,
    *,
    kind: str,
    repeat: int,
    test_fraction: float,
    val_fraction: float,
    strata: tuple[str, ...] = ("label",),
    groups: str | None = None,
    seed: int | None = None,
    held_out: Mapping[str, Sequence[Any]] | None = None,
    only: Mapping[str, Sequence[Any]] | None = None,
    train_limit: int | None = None,
) -> Split:
    """Divide a source into train, validation and test.

    Args:
        source: the data.
        run_seed: `config.seed`.
        kind: "stratified" keeps the proportions of the strata; "grouped" also keeps groups whole.
        repeat: which of many such splits.
        test_fraction: of all examples, or of all groups.
        val_fraction: likewise.
        strata: columns of the source, or "label", whose combinations are the strata. A grouped split uses
            those that have one value per group. With "label", a multi-label source is split by `label_split`, which
            keeps the share of every label, and of every value of the other columns, about the same; there a grouped
            split takes for a label the whole set of them.
        groups: column of the source with what must stay whole; needed by "grouped".
        seed: of the split, for runs that differ in `config.seed` and share it; None takes that of the run.
        held_out: {column: values}. Examples that have one of the values are tested on, the others trained and validated
            on; those in another part go nowhere. None tests on what is like the training examples.
        only: {column: values}. Examples that do not have one of the values, of every column, go nowhere; the others
            are in the part that they are in without this. None keeps all.
        train_limit: keep so many of the training examples, in the proportions of their classes; those of a smaller
            limit are among those of a larger one. Validation and test stay as they are. None keeps all.

    Raises:
        ValueError: an unknown kind, column or value, a grouped split without groups, nothing left to train or test on
            by what is held out or kept, or fewer training examples than wanted.
    """
    columns = split_columns(source, (*strata, *([groups] if groups else []), *(held_out or ()), *(only or ())))
    split_seed = _split_seed(run_seed, seed, repeat)
    if kind == "stratified" and source.is_multi_label and "label" in strata:
        others = [columns[name][:, None] == np.unique(columns[name]) for name in strata if name != "label"]
        split = label_split(np.hstack([has_labels(source), *others]), split_seed, test_fraction, val_fraction)
    else:
        table, membership = strata_and_groups(columns, kind, strata, groups)
        if membership is None:
            split = stratified_split(table, split_seed, test_fraction, val_fraction)
        else:
            split = grouped_split(membership, table, split_seed, test_fraction, val_fraction)
    if held_out:
        split = hold_out(split, np.any(has_values(columns, "held_out", held_out), axis=0))
    if only:
        split = keep_only(split, np.all(has_values(columns, "only", only), axis=0))
    chosen = {name: dict(values) for name, values in (("held_out", held_out), ("only", only)) if values}
    if chosen:
        _check_left(split, chosen, len(source))
    return split if train_limit is None else limit_train(split, columns["label"], split_seed, train_limit)


def _check_left(split: Split, chosen: Mapping[str, Any], num_images: int) -> None:
    left = {"train": "keep more to train on", "test": "keep more to test on, or raise test_fraction"}
    fixes = {part: fix for part, fix in left.items() if not len(getattr(split, part))}
    if fixes:
        said = " and ".join(f"{name}={values}" for name, values in chosen.items())
        raise ValueError(
            f"{said} leaves no images to {' and none to '.join(f'{part} on' for part in fixes)}, of "
            f"{num_images}; {'; '.join(fixes.values())}"
        )


def make_folds(
    source: Source,
    indices: np.ndarray,
    num_folds: int,
    run_seed: int,
    *,
    kind: str,
    repeat: int,
    test_fraction: float,
    val_fraction: float,
    strata: tuple[str, ...] = ("label",),
    groups: str | None = None,
    seed: int | None = None,
    held_out: Mapping[str, Sequence[Any]] | None = None,
    only: Mapping[str, Sequence[Any]] | None = None,
    train_limit: int | None = None,
) -> list[Fold]:
    """Deal images into folds as `make_split` divides them: by the same strata, and the same groups kept whole.

    Args:
        source: the data; the whole set of its labels is a stratum where it is multi-label.
        indices: which images.
        num_folds: how many folds, at least 2.
        run_seed: the run's seed.
        kind: as for `make_split`.
        repeat: as for `make_split`.
        test_fraction: of the split; folds have none.
        val_fraction: likewise.
        strata: as for `make_split`.
        groups: as for `make_split`.
        seed: as for `make_split`.
        held_out: of the split; `indices` are what it has left.
        only: likewise.
        train_limit: likewise.

    Raises:
        ValueError: as `make_split` and `k_folds`.
    """
    del test_fraction, val_fraction, held_out, only, train_limit
    columns = split_columns(source, (*strata, *([groups] if groups else [])))
    table, membership = strata_and_groups(columns, kind, strata, groups)
    of_groups = None if membership is None else membership[indices]
    return k_folds(indices, table[indices], num_folds, _split_seed(run_seed, seed, repeat), groups=of_groups)


def _split_seed(run_seed: int, seed: int | None, repeat: int) -> int:
    return hashed_seed(run_seed if seed is None else seed, f"repeat {repeat}")


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
