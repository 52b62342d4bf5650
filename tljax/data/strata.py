"""What a split may go by: the columns of a source, and strata, groups and chosen examples by these."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from tljax.data.sources import Source, has_labels
from tljax.data.splits import combine_strata
from tljax.paths import did_you_mean

SPLITS = ("stratified", "grouped")


def split_columns(source: Source, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of a source, and "label"; of a multi-label source that is the whole set of its labels.

    Args:
        source: the data.
        names: columns that are wanted.

    Raises:
        ValueError: a column that is wanted is not there.
    """
    columns = {**source.columns, "label": _label_sets(source) if source.is_multi_label else source.labels}
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise ValueError(
            f"source {source.name!r} has no column {unknown[0]!r}{did_you_mean(unknown[0], columns)}; "
            f"it has {', '.join(sorted(columns))}"
        )
    return columns


def strata_and_groups(
    columns: Mapping[str, np.ndarray], kind: str, strata: Sequence[str], groups: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the stratum of each example, and for a grouped split its group.

    Raises:
        ValueError: an unknown kind, or a grouped split without groups.
    """
    if kind == "stratified":
        return combine_strata(*(columns[name] for name in strata)), None
    if kind != "grouped":
        raise ValueError(f"no split kind {kind!r}{did_you_mean(kind, SPLITS)}; kinds are {', '.join(SPLITS)}")
    if groups is None:
        raise ValueError("a grouped split needs config.split.groups, the column with what must stay whole")
    constant = [name for name in strata if _is_constant_within(columns[name], columns[groups])]
    nothing = np.zeros(len(columns[groups]), np.int64)
    return combine_strata(*(columns[name] for name in constant)) if constant else nothing, columns[groups]


def has_values(
    columns: Mapping[str, np.ndarray], key: str, wanted: Mapping[str, Sequence[Any]]
) -> Bool[np.ndarray, "c n"]:
    """Tell the examples that have one of the values of a column; a row for each column.

    Args:
        columns: of a source.
        key: of `config.split`, which errors name.
        wanted: {column: values}.

    Raises:
        ValueError: a value that no example has.
    """
    found = []
    for name, values in wanted.items():
        known = np.unique(columns[name]).tolist()
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(
                f"config.split.{key}: no example has the {name!r} {unknown[0]!r}"
                f"{did_you_mean(str(unknown[0]), map(str, known))}; known: {', '.join(map(str, known[:20]))}"
            )
        found.append(np.isin(columns[name], np.asarray(values)))
    return np.stack(found)


def _label_sets(source: Source) -> np.ndarray:
    return np.unique(has_labels(source), axis=0, return_inverse=True)[1].reshape(-1)


def _is_constant_within(values: np.ndarray, groups: np.ndarray) -> bool:
    return len(np.unique(combine_strata(values, groups))) == len(np.unique(groups))
