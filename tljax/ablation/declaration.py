"""What `study.json` says of the runs below it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.ablation.factorial import Cell
from tljax.ablation.factors import label

STUDY = "study.json"
_REQUIRED = ("title", "question", "task", "metric", "factors", "baseline")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A study as it was declared, or what is known of runs without one.

    Args:
        folder: of the study.
        title, question: for people.
        task: of all runs; None where that is for the runs to say.
        metric: that cells are compared by.
        factors: {dotted config field: values in order}; None where the runs say what differs.
        labels: {the same fields: names of their values}; empty where values go by themselves.
        baseline: {field, or factor: value}; None without a baseline.
        cells: [{"values": {factor: value or label}, "runs": {seed: path from the folder}}]; None where the configs of
            the runs say where they belong.
    """

    folder: Path
    title: str
    question: str
    task: str | None
    metric: str
    factors: Mapping[str, Sequence[Any]] | None
    labels: Mapping[str, Sequence[str]]
    baseline: Mapping[str, Any] | None
    cells: Sequence[Mapping[str, Any]] | None

    def baseline_cell(self, levels: Mapping[str, Sequence[str]]) -> Cell | None:
        """Return the baseline among the cells, whose factors may have names of their own.

        Raises:
            ValueError: the baseline does not say the level of a factor.
        """
        if self.baseline is None:
            return None
        cell = []
        for name, known in levels.items():
            found = self._baseline_level(name, known)
            if found is None:
                raise ValueError(f"{self.folder / STUDY}: the baseline has none of the levels of {name!r}: {known}")
            cell.append(found)
        return tuple(cell)

    def _baseline_level(self, name: str, known: Sequence[str]) -> str | None:
        assert self.baseline is not None
        if name in self.baseline:
            found = label(self.baseline[name])
            return found if found in known else None
        for field, names in self.labels.items():
            if field in self.baseline and set(names) >= set(known):
                return names[list((self.factors or {})[field]).index(self.baseline[field])]
        return None


def read_declaration(directories: Sequence[str | os.PathLike]) -> Declaration:
    """Read `study.json`, or say what is known without.

    Raises:
        ValueError: there are two, or it lacks what it must say, or names its runs while other folders are given.
    """
    folders = [Path(folder) for folder in directories]
    declared = [folder for folder in folders if (folder / STUDY).exists()]
    if len(declared) > 1:
        raise ValueError(
            f"{' and '.join(map(str, declared))} are two studies; report each on its own, or name folders of runs"
        )
    if not declared:
        return Declaration(
            folder=folders[0], title=" and ".join(folder.resolve().name for folder in folders), question="", task=None,
            metric="accuracy", factors=None, labels={}, baseline=None, cells=None,
        )  # fmt: skip
    said = rundir.read_json(declared[0] / STUDY)
    missing = [name for name in _REQUIRED if name not in said]
    if missing:
        raise ValueError(f"{declared[0] / STUDY} lacks {', '.join(missing)}; `tljax sweep` writes it")
    optional = {"labels": {}, "cells": None, **said}
    if optional["cells"] is not None and len(folders) > 1:
        raise ValueError(f"{declared[0]} names its runs; report it without other folders")
    names = ("title", "question", "task", "metric", "factors", "labels", "baseline", "cells")
    return Declaration(folder=declared[0], **{name: optional[name] for name in names})


def labelled_cells(cells: Sequence[Mapping[str, Any]]) -> tuple[list[Cell], dict[str, list[str]]]:
    """Return the labels of each cell, and the levels of each factor in order of appearance."""
    names = list(dict.fromkeys(name for cell in cells for name in cell))
    labelled = [tuple(label(cell[name]) if name in cell else "absent" for name in names) for cell in cells]
    levels = {name: list(dict.fromkeys(cell[at] for cell in labelled)) for at, name in enumerate(names)}
    return labelled, levels
