"""Labels from the cells of a table: one class, shares of the classes, or any number of classes for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from tljax.paths import did_you_mean

KINDS = SINGLE, SOFT, MULTI_LABEL = ("single", "soft", "multi_label")
# Of the sum of a row of shares: thirds that are written with three decimals miss 1 by 0.001.
_SUM_TOLERANCE = 0.002

Cells = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What a table says of its images; the fields are those of `sources.Source`."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    targets: Float32[np.ndarray, "n k"] | None


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """Where the labels of a table are.

    Args:
        kind: "single" for one class an image, "soft" for shares of the classes, "multi_label" for any number of them.
        label_column: holds the name of a class, or the names of several with `separator` between them, or nothing for
            none of them.
        label_columns: one for each class, with numbers from 0 to 1; the class is called as its column.
        separator: of names in `label_column`.

    Raises:
        ValueError: the kind is not known, or the others do not go with it.
    """

    kind: str
    label_column: str | None
    label_columns: tuple[str, ...]
    separator: str | None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"config.data: no kind {self.kind!r}{did_you_mean(self.kind, KINDS)}; known: {KINDS}")
        given = (self.label_column is not None, bool(self.label_columns), bool(self.separator))
        wanted = {
            SINGLE: {(True, False, False): "label_column"},
            SOFT: {(False, True, False): "label_columns"},
            MULTI_LABEL: {(False, True, False): "label_columns", (True, False, True): "label_column and separator"},
        }[self.kind]
        if given not in wanted:
            raise ValueError(
                f"config.data: kind {self.kind!r} wants {', or '.join(wanted.values())}, and none of the others; got "
                f"label_column {self.label_column!r}, label_columns {self.label_columns}, separator {self.separator!r}"
            )
        twice = sorted({name for name in self.label_columns if self.label_columns.count(name) > 1})
        if twice:
            raise ValueError(f"config.data.label_columns names {', '.join(twice)} more than once")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns themselves."""
        return self.label_columns if self.label_column is None else (self.label_column,)


def parse_labels(cells: Cells, where: Sequence[str], columns: LabelColumns, problems: list[str]) -> Labels:
    """Read the labels of all rows.

    Args:
        cells: of each column.
        where: what to call each row in messages.
        columns: that hold the labels.
        problems: what is wrong is added here, and what is returned then means nothing.
    """
    if columns.label_column is None:
        targets = _parse_numbers(cells, where, columns.label_columns, problems)
        if columns.kind == SOFT:
            targets = _normalise(targets, where, problems)
        return _labels(columns.label_columns, targets, columns.kind)
    texts = cells[columns.label_column]
    rows = [[text] if columns.separator is None else _split(text, columns.separator) for text in texts]
    for place, text, names in zip(where, texts, rows, strict=True):
        if "" in names:
            problems.append(f"{place}: column {columns.label_column!r} has an empty class name in {text!r}")
        if len(set(names)) < len(names):
            problems.append(f"{place}: column {columns.label_column!r} names a class twice in {text!r}")
    class_names = tuple(sorted({name for names in rows for name in names}))
    position = {name: index for index, name in enumerate(class_names)}
    if columns.kind == SINGLE:
        labels = np.array([position[name] for (name,) in rows], np.int32)
        return Labels(class_names=class_names, labels=labels, targets=None)
    targets = np.zeros((len(rows), len(class_names)), np.float64)
    for row, names in zip(targets, rows, strict=True):
        row[[position[name] for name in names]] = 1.0
    return _labels(class_names, targets, columns.kind)


def parse_number(text: str) -> float:
    """Return the number that a cell holds; NaN where it holds none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _labels(class_names: tuple[str, ...], targets: np.ndarray, kind: str) -> Labels:
    # No class stands for an image that has several: what needs one fails on -1, where argmax would go through.
    labels = np.full(len(targets), -1) if kind == MULTI_LABEL else targets.argmax(axis=1)
    return Labels(class_names=class_names, labels=labels.astype(np.int32), targets=targets.astype(np.float32))


def _split(text: str, separator: str) -> list[str]:
    return [name.strip() for name in text.split(separator)] if text else []


def _parse_numbers(cells: Cells, where: Sequence[str], names: tuple[str, ...], problems: list[str]) -> np.ndarray:
    values = np.array([[parse_number(text) for text in cells[name]] for name in names], np.float64).T  # k n -> n k
    # Not "outside": NaN is neither inside nor outside.
    for row, column in np.argwhere(~((values >= 0) & (values <= 1))).tolist():
        text = cells[names[column]][row]
        problems.append(f"{where[row]}: column {names[column]!r} is {text!r}, wanted a number from 0 to 1")
    return values


def _normalise(shares: np.ndarray, where: Sequence[str], problems: list[str]) -> np.ndarray:
    """Divide shares by their sum, which rounding leaves a little off 1."""
    sums = shares.sum(axis=1)
    for row in np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE).tolist():
        problems.append(f"{where[row]}: shares of the classes sum to {sums[row]:g}, wanted 1, or kind {MULTI_LABEL!r}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return shares / sums[:, None]
