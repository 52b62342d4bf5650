"""The records of run directories, read from disk for a comparison of many."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.ablation.choice import PREFIX

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
ERROR = "error.json"
# A curve of more training steps is read at this many, evenly apart: the rest says little, and a thousand runs are long.
CURVE_POINTS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRecord:
    """What a run directory says.

    Args:
        path: of the directory.
        task: its name.
        config: plain values.
        done: results, null where one has no value; None where the run has none.
        error: why it failed; None where it did not.
        attempts: how often it was tried, where that was recorded.
        validations: the records of `metrics.jsonl` with validation results.
        losses: {step: training loss}, of some steps.
        evaluation: the first record of `evaluations.json`; empty where there is none.
        stages: of the net, in order of depth; empty where that is not recorded.
        class_names: empty where they are not recorded.
        environment: of the last start; empty where it is not recorded.
    """

    path: Path
    task: str
    config: Mapping[str, Any]
    done: Mapping[str, int | float | None] | None
    error: str | None
    attempts: int | None
    validations: Sequence[Mapping[str, Any]]
    losses: Mapping[int, float]
    evaluation: Mapping[str, Any]
    stages: Sequence[str]
    class_names: Sequence[str]
    environment: Mapping[str, Any]

    @property
    def state(self) -> str:
        """Whether the run has results, an error, or neither."""
        if self.error is not None:
            return FAILED
        return UNFINISHED if self.done is None else FINISHED

    def number(self, name: str) -> float | None:
        """Return a result; None where the run lacks it, or it is not finite."""
        value = None if self.done is None or name not in self.done else self.done[name]
        return float(value) if value is not None and math.isfinite(value) else None


def find_runs(directory: str | os.PathLike) -> list[Path]:
    """Return the run directories in a folder and below, itself among them, by name.

    Raises:
        ValueError: there is no such folder.
    """
    if not Path(directory).is_dir():
        raise ValueError(f"no folder {directory}; wanted a study, or a folder with run directories")
    found, seen = [], set()
    # Runs that studies share are links in them.
    for folder, below, files in os.walk(directory, followlinks=True):
        place = os.path.realpath(folder)
        # A link may lead to a folder above.
        below[:] = [] if place in seen else sorted(one for one in below if one != "checkpoints" and one[0] != ".")
        if place in seen:
            continue
        seen.add(place)
        if rundir.CONFIG in files and _is_run(Path(folder)):
            found.append(Path(folder))
    return found


def _is_run(path: Path) -> bool:
    """Tell the config of a run from that of a model folder, which has the same name."""
    value = rundir.read_json(path / rundir.CONFIG)
    return isinstance(value, dict) and {"task", "config"} <= value.keys()


def read_run(path: Path, *, task: str | None = None) -> RunRecord:
    """Read all that a comparison shows of a run.

    Args:
        path: of its directory.
        task: of a run that may not have begun, or failed before it did; None wants one with a config.
    """
    config = (
        rundir.read_json(path / rundir.CONFIG)
        if task is None
        else _read(path / rundir.CONFIG, {"task": task, "config": {}})
    )
    done = _read(path / rundir.DONE, None)
    failure = None if done is not None else _read(path / ERROR, None)
    validations, losses = _read_curves(path / rundir.METRICS)
    evaluations, starts = _read(path / "evaluations.json", []), rundir.starts(path)
    return RunRecord(
        path=path,
        task=config["task"],
        config=config["config"],
        done=done,
        error=None if failure is None else str(failure["error"]),
        attempts=None if failure is None else int(failure["attempts"]),
        validations=validations,
        losses=losses,
        evaluation=evaluations[0] if evaluations else {},
        stages=list(dict.fromkeys(row["stage"] for row in _read(path / "partition.json", []))),
        class_names=_read(path / "classes.json", []),
        environment=starts[-1] if starts else {},
    )


def _read(path: Path, absent: Any) -> Any:
    return rundir.read_json(path) if path.exists() else absent


def _read_curves(path: Path) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """Read the validations of a metrics file, and the training loss at even distances."""
    if not path.exists():
        return [], {}
    # A last line without its end was cut short by a killed process.
    lines = path.read_text().split("\n")[:-1]
    validated = [line for line in lines if f'"{PREFIX}' in line]
    trained = [line for line in lines if '"loss"' in line]
    every = max(math.ceil(len(trained) / CURVE_POINTS), 1)
    losses = {}
    # The last step, counted backwards, is always among them.
    for line in reversed(trained[::-1][::every]):
        record = json.loads(line)
        losses[record["step"]] = record["loss"]
    return [json.loads(line) for line in validated], losses


def validation_metrics(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield the names of all validation metrics."""
    rows = itertools.chain.from_iterable(record.validations for record in records)
    yield from dict.fromkeys(name for row in rows for name in row if name.startswith(PREFIX))
