"""Images that a table names, with the labels that it gives them."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from tljax.data.files import ImageFiles
from tljax.data.table_labels import MULTI_LABEL, Cells, LabelColumns, parse_labels, parse_number
from tljax.paths import did_you_mean

# What splits call the labels.
_RESERVED = "label"
# Problems that a message lists before it counts the rest.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable(ImageFiles):
    """Images and labels by the rows of a table, in their order; `open_table` makes it."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    targets: Float32[np.ndarray, "n k"] | None
    is_multi_label: bool
    weights: Float32[np.ndarray, " n"]
    columns: Mapping[str, np.ndarray]


def open_table(
    root: str | os.PathLike,
    *,
    path: str | os.PathLike,
    file_column: str,
    kind: str,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    separator: str | None = None,
    weight_column: str | None = None,
    delimiter: str = ",",
) -> ImageTable:
    """Read a CSV file with a header and a row for each image; spaces around its cells do not count.

    Args:
        root: folder of the images.
        path: of the table, from `root` on, or absolute.
        file_column: holds the file of each image, from `root` on.
        kind: "single", "soft" or "multi_label"; with the next three, see `table_labels.LabelColumns`.
        label_column: likewise.
        label_columns: likewise.
        separator: likewise.
        weight_column: confidence in the labels of each image, at least 0; None for 1.
        delimiter: between cells.

    Returns:
        The source; columns that are named by no argument are its `columns`, as text.

    Raises:
        FileNotFoundError: there is no such folder or table.
        ValueError: the arguments do not fit one another, or the table; the message lists all that is wrong.
    """
    where_labels = LabelColumns(
        kind=kind, label_column=label_column, label_columns=tuple(label_columns), separator=separator
    )
    folder = Path(root).resolve()
    file = folder / path
    if not file.is_file():
        raise FileNotFoundError(f"no table {file}; give config.data.path from config.data.root on, or absolute")
    cells, where = _read(file, delimiter)
    used = (file_column, *where_labels.names, *([] if weight_column is None else [weight_column]))
    _check_columns(file, cells, used)
    problems = _file_problems(folder, cells[file_column], where)
    labels = parse_labels(cells, where, where_labels, problems)
    weights = np.ones(len(where), np.float32)
    if weight_column is not None:
        weights = _parse_weights(cells[weight_column], where, weight_column, problems)
    _refuse(file, problems)
    return ImageTable(
        root=folder,
        name=f"{folder.name}/{file.stem}",
        files=tuple(cells[file_column]),
        class_names=labels.class_names,
        labels=labels.labels,
        targets=labels.targets,
        is_multi_label=kind == MULTI_LABEL,
        weights=weights,
        columns={name: np.array(values) for name, values in cells.items() if name not in used},
    )


def _read(file: Path, delimiter: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the cells of each column, and the place of each row in the file."""
    try:
        # Spreadsheets put a mark before UTF-8.
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no CSV file in UTF-8: {error}; save the table as one") from error
    if len(rows) < 2:
        raise ValueError(f"{file} has {len(rows)} rows, wanted a header and a row for each image")
    (_, header), *rows = rows
    problems = [f"column {name!r} is there {header.count(name)} times" for name in sorted(set(header))
                if header.count(name) > 1]  # fmt: skip
    problems += [
        f"line {line}: {len(row)} cells, wanted {len(header)}" for line, row in rows if len(row) != len(header)
    ]
    _refuse(file, problems)
    columns = zip(*(row for _, row in rows), strict=True)
    return {name: list(cells) for name, cells in zip(header, columns, strict=True)}, [f"line {n}" for n, _ in rows]


def _check_columns(file: Path, cells: Cells, used: Sequence[str]) -> None:
    problems = [f"no column {name!r}{did_you_mean(name, cells)}" for name in dict.fromkeys(used) if name not in cells]
    problems += [f"column {name!r} is named for two uses" for name in dict.fromkeys(used) if used.count(name) > 1]
    if _RESERVED in cells and _RESERVED not in used:
        problems.append(f"column {_RESERVED!r} is not used, and splits call the labels so; rename it")
    if problems:
        _refuse(file, [*problems, f"the columns are {', '.join(map(repr, cells))}"])


def _file_problems(folder: Path, files: Sequence[str], where: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for place, name in zip(where, files, strict=True):
        before = first.setdefault(os.path.normpath(name), place)
        if not (folder / name).is_file():
            problems.append(f"{place}: no file {name!r} in {folder}")
        elif before != place:
            problems.append(f"{place}: file {name!r} is that of {before} too")
    return problems


def _parse_weights(
    texts: Sequence[str], where: Sequence[str], column: str, problems: list[str]
) -> Float32[np.ndarray, " n"]:
    weights = np.array([parse_number(text) for text in texts], np.float64)
    for row in np.flatnonzero(~((weights >= 0) & (weights < np.inf))).tolist():
        problems.append(f"{where[row]}: column {column!r} is {texts[row]!r}, wanted a finite number of at least 0")
    return weights.astype(np.float32)


def _refuse(file: Path, problems: Sequence[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ValueError(f"{file}:\n  " + "\n  ".join([*problems[:_SHOWN], *more]))
