"""Predictions as a table, or as JSON, written as they come: whole or not at all."""

import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from tljax import rundir
from tljax.calibration import SIGMOID
from tljax.tasks.finished import Finished
from tljax.tasks.predictor import label_of, top_of

STDOUT = "-"
# Between the labels of an image in a cell.
SEPARATOR = "|"
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


@runtime_checkable
class Writer(Protocol):
    """Takes predictions one by one."""

    def add(self, name: str, row: np.ndarray) -> None:
        """Write the probabilities of an image."""
        ...

    def add_bad(self, name: str, reason: str) -> None:
        """Write what is wrong with an image."""
        ...


@contextlib.contextmanager
def open_writer(to: str, model: Finished, top: int | None) -> Iterator[Writer]:
    """Open what predictions are written to; files appear when the context is left without an error.

    Args:
        to: a file ".csv", with a file ".bad.csv" beside it if there are bad images; a file ".json"; or "-" for a table
            on standard output.
        model: that predicts.
        top: how many classes are written, the most probable ones; None for all.

    Raises:
        ValueError: the file has another ending.
        OSError: the folder cannot be written.
    """
    if to == STDOUT:
        # Paths need not be text.
        with open(sys.stdout.fileno(), "w", closefd=False, **_ENCODING) as file:
            yield _Table(file, model, top, None)
        return
    path = Path(to)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"--to={to} is no file .csv or .json, and not {STDOUT!r} for standard output")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--to={to}: there is no folder {path.absolute().parent}; make it first")
    # The main file comes last: it is there when the other is.
    with rundir.replacing(path) as temporary, contextlib.ExitStack() as stack:
        file = stack.enter_context(temporary.open("w", **_ENCODING))
        if path.suffix == ".json":
            with _Json(file, model, top) as writer:
                yield writer
            return
        bad = _Bad(bad_path(path), stack)
        yield _Table(file, model, top, bad)
        if not bad.count:
            bad_path(path).unlink(missing_ok=True)


def bad_path(path: Path) -> Path:
    """Return where the bad images of a table are listed."""
    return path.with_name(f"{path.stem}.bad.csv")


class _Bad:
    """The table of bad images, made when there is one."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path, self._stack, self.count = path, stack, 0
        self._rows: Any = None

    def add(self, name: str, reason: str) -> None:
        if not self.count:
            temporary = self._stack.enter_context(rundir.replacing(self._path))
            self._rows = csv.writer(self._stack.enter_context(temporary.open("w", **_ENCODING)))
            self._rows.writerow(("path", "reason"))
        self.count += 1
        self._rows.writerow((name, reason))


class _Table:
    """CSV: the path, what is predicted, then a probability for each class or the most probable classes."""

    def __init__(self, file: IO[str], model: Finished, top: int | None, bad: _Bad | None):
        self._model, self._top, self._bad = model, top, bad
        self._rows = csv.writer(file)
        self._rows.writerow(("path", *self._predicted_columns(), *self._other_columns()))

    def add(self, name: str, row: np.ndarray) -> None:
        best = top_of(row, self._model.class_names, 1 if self._top is None else self._top)
        if self._model.kind == SIGMOID:
            predicted, ranked = [SEPARATOR.join(label_of(row, self._model.class_names, SIGMOID))], best
        else:
            predicted, ranked = [best[0][0], _number(best[0][1])], best[1:]
        if self._top is None:
            others = [_number(value) for value in row]
        else:
            others = [cell for label, value in ranked for cell in (label, _number(value))]
        self._rows.writerow((name, *predicted, *others))

    def add_bad(self, name: str, reason: str) -> None:
        if self._bad is not None:
            self._bad.add(name, reason)

    def _predicted_columns(self) -> Sequence[str]:
        return ("labels",) if self._model.kind == SIGMOID else ("class", "probability")

    def _other_columns(self) -> list[str]:
        if self._top is None:
            return [f"p({name})" for name in self._model.class_names]
        first = 1 if self._model.kind == SIGMOID else 2
        return [f"{name}_{rank}" for rank in range(first, self._top + 1) for name in ("class", "probability")]


class _Json:
    """One object: the model, "predictions" and "bad"; the latter wait in a file until the former are written."""

    def __init__(self, file: IO[str], model: Finished, top: int | None):
        self._file, self._model = file, model
        self._top = len(model.class_names) if top is None else top
        self._bad = tempfile.TemporaryFile("w+", **_ENCODING)  # noqa: SIM115 (closed by __exit__)
        self._is_first = {"good": True, "bad": True}

    def __enter__(self) -> "_Json":
        head = {
            "model": self._model.pretrained.description,
            "class_names": list(self._model.class_names),
            "kind": self._model.kind,
            "temperature": self._model.temperature,
            "calibration": self._model.describe_calibration(),
        }
        self._file.write(json.dumps(head)[:-1] + ', "predictions": [')
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._file.write('\n], "bad": [')
            self._bad.seek(0)
            while text := self._bad.read(2**16):
                self._file.write(text)
            self._file.write("\n]}\n")
        self._bad.close()

    def add(self, name: str, row: np.ndarray) -> None:
        best = top_of(row, self._model.class_names, self._top)
        found: dict[str, Any] = {"path": name}
        if self._model.kind == SIGMOID:
            found["labels"] = label_of(row, self._model.class_names, SIGMOID)
        else:
            found |= {"class": best[0][0], "probability": float(_number(best[0][1]))}
        found["probabilities"] = {label: float(_number(value)) for label, value in best}
        self._append(self._file, "good", found)

    def add_bad(self, name: str, reason: str) -> None:
        self._append(self._bad, "bad", {"path": name, "reason": reason})

    def _append(self, file: IO[str], which: str, value: dict[str, Any]) -> None:
        file.write(("\n" if self._is_first[which] else ",\n") + json.dumps(value))
        self._is_first[which] = False


def _number(value: Any) -> str:
    """Write a number of float32 with all digits that it has."""
    return str(np.float32(value))
