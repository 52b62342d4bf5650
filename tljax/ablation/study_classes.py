"""Two cells of a study by class and by group of test images."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tljax.ablation.comparison import Comparison, as_family, compare
from tljax.ablation.factorial import Cell, Seed
from tljax.ablation.intervals import Summary, summarise
from tljax.ablation.run_records import RunRecord
from tljax.ablation.study import Study
from tljax.ablation.study_analysis import within_range

# One row of a view: a name, the two means, and the difference.
Row = tuple[str, Summary, Summary, Comparison]
Scores = Callable[[RunRecord], Mapping[str, float]]


def recalls(record: RunRecord) -> dict[str, float]:
    """Return the recall of each class, or its average precision where images have several labels."""
    if "by_class" in record.evaluation:
        scores = {name: one["average_precision"] for name, one in record.evaluation["by_class"].items()}
        return {name: value for name, value in scores.items() if value is not None}
    confusion = record.evaluation.get("confusion", [])
    names = class_names([record])
    return {name: row[at] / sum(row) for at, (name, row) in enumerate(zip(names, confusion, strict=True)) if sum(row)}


def group_scores(metric: str) -> Scores:
    """Return how to read a metric of each group of test images."""

    def read(record: RunRecord) -> dict[str, float]:
        groups = record.evaluation.get("by_group", {})
        scores = {name: one.get(metric) for name, one in groups.items()}
        return {name: value for name, value in scores.items() if value is not None and np.isfinite(value)}

    return read


def compare_by(study: Study, pair: tuple[Cell, Cell], scores: Scores, name: str) -> list[Row]:
    """Compare two cells in each class or group, by seed; the family is that of all classes or groups.

    Args:
        study: that has them.
        pair: the cells.
        scores: of each class or group.
        name: of the scores, which says where they can be.
    """
    first, second = (dict(_by_name(study, cell, scores)) for cell in pair)
    parts = [part for part in first if part in second and first[part].keys() & second[part].keys()]
    family = as_family([compare(first[part], second[part]) for part in parts])
    rows = []
    for part, found in zip(parts, family, strict=True):
        ours, theirs = (summarise(list(side[part].values())) for side in (first, second))
        if ours and theirs and found:
            rows.append((part, within_range(ours, name), within_range(theirs, name), found))
    return rows


def _by_name(study: Study, cell: Cell, scores: Scores) -> Iterator[tuple[str, dict[Seed, float]]]:
    found: dict[str, dict[Seed, float]] = {}
    for run in study.finished:
        if run.cell == cell:
            for name, value in scores(run.record).items():
                found.setdefault(name, {})[run.seed] = value
    yield from found.items()


def confusion_of(study: Study, cell: Cell) -> list[list[int]]:
    """Sum the confusion matrices of a cell over its seeds; empty where it has none."""
    matrices = [
        run.record.evaluation["confusion"] for run in study.finished if _has_confusion(run.record, cell, run.cell)
    ]
    return np.sum(matrices, axis=0).tolist() if matrices else []


def _has_confusion(record: RunRecord, wanted: Cell, cell: Cell) -> bool:
    return cell == wanted and "confusion" in record.evaluation


def class_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of the classes, or their numbers where they are not recorded."""
    for record in records:
        if record.class_names:
            return list(record.class_names)
    sizes = [len(record.evaluation.get("confusion", [])) for record in records]
    return [f"class {index}" for index in range(max(sizes, default=0))]
