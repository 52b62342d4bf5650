"""Which cell of a study to take, by validation alone.

`best` is given a `Validation` and nothing else. That has no place for test results: it is made of the records of a
run's `metrics.jsonl`, which are written while it trains, of metrics named "val_...", and never of `done.json`,
`evaluations.json` or `predictions.npz`, where the test part is. So the test part of a cell cannot have a say in whether
it is chosen, and its result is that of one look.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.ablation.comparison import Values
from tljax.ablation.factorial import Cell
from tljax.ablation.intervals import Summary, summarise

PREFIX = "val_"
# By which a run keeps its best params, for data with one label an image or many.
MAIN = ("val_accuracy", "val_mean_average_precision")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation results of the runs of a study.

    Args:
        metric: as it is called in `metrics.jsonl`, with "val_" before it.
        values: {cell: {seed: value}}.
        minimise: lower is better.
    """

    metric: str
    values: Mapping[Cell, Values]
    minimise: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not of validation, or no number."""
        if not self.metric.startswith(PREFIX):
            raise ValueError(
                f"cannot choose by {self.metric!r}: it is no validation metric, whose names begin with {PREFIX!r}"
            )
        wrong = [cell for cell, found in self.values.items() if not all(map(math.isfinite, found.values()))]
        if wrong:
            raise ValueError(f"{self.metric} of {wrong[0]} is not finite: leave failed runs out, and list them")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The cell chosen, and the others in the order of validation.

    Args:
        cell: with the best mean.
        ranking: (cell, mean of the seeds) of all cells that could be chosen, the best first.
        num_incomplete: cells left out because they lack seeds that others have.
    """

    cell: Cell
    ranking: Sequence[tuple[Cell, Summary]]
    num_incomplete: int


def best(validation: Validation) -> Choice | None:
    """Choose the cell with the best mean over seeds; of equals the first.

    Only cells with all seeds can be chosen: one whose hard seeds failed would look better than it is. None where the
    runs have no validation results.
    """
    seeds = {seed for values in validation.values.values() for seed in values}
    whole = {cell: values for cell, values in validation.values.items() if seeds and values.keys() == seeds}
    found = [(cell, mean) for cell, values in whole.items() if (mean := summarise(list(values.values())))]
    if not found:
        return None
    sign = 1 if validation.minimise else -1
    ranking = sorted(found, key=lambda pair: sign * pair[1].mean)
    return Choice(cell=ranking[0][0], ranking=ranking, num_incomplete=len(validation.values) - len(whole))


def validation_value(records: Sequence[Mapping[str, Any]], metric: str, *, keeps_best: bool) -> float | None:
    """Return what validation said of the params that a run kept; None where it was not validated.

    Args:
        records: of `metrics.jsonl`.
        metric: with "val_" before it.
        keeps_best: the run kept the params with the largest main metric, the latest of equals; if not, the last.
    """
    found = {record["step"]: record for record in records if metric in record}
    if not found:
        return None
    step = max(found)
    main = next((name for name in MAIN if name in found[step]), None)
    if keeps_best and main is not None:
        step = max(found, key=lambda one: (found[one][main], one))
    return float(found[step][metric])
