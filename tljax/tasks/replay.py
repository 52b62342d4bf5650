"""Run the config of a run directory again, and compare every bit of what came out."""

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax import plain, rundir
from tljax.ablation.runs import Run
from tljax.tasks import TASKS, WITHOUT_WORKDIR
from tljax.tasks.caching import CACHES
from tljax.tasks.inputs import SPLIT
from tljax.tasks.together import TOGETHER, run_again

EVALUATIONS, PREDICTIONS = "evaluations.json", "predictions.npz"
# Results that depend on the load of the machine, or on what other runs have left in the cache.
_LOOSE = ("seconds", "share_reused")
# Of an environment, what cannot change a number.
_OF_THE_START = ("argv", "started", "execution", "cpu_count")
# Of a program that trained several runs, what can.
_OF_THE_PROGRAM = ("place", "runs", "devices", "is_resident")
# Decisions of a run that were given to it, or follow from measured speeds.
_DECIDED = (CACHES, SPLIT)
# Where files are, which the hashes of the inputs see through.
_PATHS = (("data", "root"), ("cache_dir",))

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a replay compares with its run.

    Args:
        causes: what was not the same before the first step: config, inputs, environment; a line each.
        differences: what came out otherwise, the first step or result first; a line each. Empty where all that was
            compared is the same to the bit.
        compared: names of the files.
    """

    causes: tuple[str, ...]
    differences: tuple[str, ...]
    compared: tuple[str, ...]


def replay_run(original: str | os.PathLike, config: Mapping[str, Any], workdir: str | os.PathLike) -> Comparison:
    """Run a finished run again, in a directory of its own, and compare; killed, the same call goes on.

    Args:
        original: directory of the run, which may be a copy; it is only read.
        config: of `read_config`, any paths changed to those of this machine.
        workdir: of the replay.

    Raises:
        ValueError: the directories are one, or the run cannot be repeated with these inputs.
        OSError: files of the config are not here.
    """
    original, workdir = Path(original), Path(workdir)
    if workdir.resolve() == original.resolve():
        raise ValueError(f"--workdir is the run itself, {original}; a replay has a directory of its own")
    task = rundir.read_json(original / rundir.CONFIG)["task"]
    for path in missing_paths(config):
        log.warning("config.%s is not on this machine; --config.%s=PATH gives another", *path)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in _DECIDED:
        if (original / name).exists() and not (workdir / name).exists():
            shutil.copyfile(original / name, workdir / name)
    last = rundir.starts(original)[-1]
    try:
        if TOGETHER in last:
            run_again(Run(task=task, config=config, workdir=workdir), last[TOGETHER])
        else:
            TASKS[task][0](config, workdir)
    except ValueError as error:
        causes = _causes(original, workdir)
        if not causes:
            raise
        raise ValueError("\n  ".join([f"{error}\nThis is not the same as when it ran:", *causes])) from error
    return compare(original, workdir)


def read_config(original: str | os.PathLike) -> dict[str, Any]:
    """Return the config of a finished run, and how it was executed the last time.

    Raises:
        ValueError: the folder is no finished run.
    """
    original = Path(original)
    missing = [name for name in (rundir.CONFIG, rundir.DONE, rundir.ENV) if not (original / name).is_file()]
    if missing:
        raise ValueError(f"{original} has no {' and no '.join(missing)}; wanted the directory of a finished run")
    held = rundir.read_json(original / rundir.CONFIG)
    if held["task"] not in TASKS or held["task"] in WITHOUT_WORKDIR:
        raise ValueError(f"{original} is a run of {held['task']!r}, which is no task of this version")
    last = rundir.starts(original)[-1]
    execution = {"execution": last["execution"]} if last.get("execution") else {}
    return _with_tuples({**held["config"], **execution})


def missing_paths(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the dotted names and values of the paths of a config that are not on this machine."""
    found = []
    for names in _PATHS:
        value: Any = config
        for name in names:
            value = value[name] if isinstance(value, Mapping) and name in value else None
        if isinstance(value, str) and not Path(value).exists():
            found.append((f"{'.'.join(names)} = {value!r}", ".".join(names)))
    return found


def compare(original: Path, workdir: Path) -> Comparison:
    """Compare two finished run directories."""
    differences, compared = [], []
    for name, compare_file in _COMPARED.items():
        here, there = (original / name).exists(), (workdir / name).exists()
        if here != there:
            differences.append(f"{name}: {'only in the run' if here else 'only in the replay'}")
        if here and there:
            compared.append(name)
            differences += compare_file(original / name, workdir / name)
    return Comparison(
        causes=tuple(_causes(original, workdir)), differences=tuple(differences), compared=tuple(compared)
    )


def _causes(original: Path, workdir: Path) -> list[str]:
    found = []
    for name in (rundir.CONFIG, rundir.INPUTS):
        pair = [rundir.read_json(path / name) for path in (original, workdir) if (path / name).exists()]
        if len(pair) == 2:
            found += [f"{name}: {line}" for line in plain.differences(*pair)]
    starts = rundir.starts(original)
    again = rundir.starts(workdir)
    if not starts or not again:
        return found
    before, now = (_comparable(one[-1]) for one in (starts, again))
    found += [f"{rundir.ENV}: {line}" for line in plain.differences(_listed(before), _listed(now))]
    # A run that began with others and ends alone has begun again.
    own = [one for one in starts if (TOGETHER in one) == (TOGETHER in before)]
    kinds = {json.dumps(_comparable(one), sort_keys=True) for one in own}
    if len(kinds) > 1:
        found.append(f"{rundir.ENV}: the run itself went on in {len(kinds)} different environments")
    return found


def _comparable(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can change a number."""
    found = {key: value for key, value in start.items() if key not in _OF_THE_START}
    if TOGETHER in found:
        found[TOGETHER] = {key: found[TOGETHER][key] for key in _OF_THE_PROGRAM}
    return found


def _listed(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Count the devices, of which there may be many alike."""
    devices = environment["devices"]
    counts = {device: devices.count(device) for device in dict.fromkeys(devices)}
    return {**environment, "devices": ", ".join(f"{count} x {device}" for device, count in counts.items())}


def _compare_metrics(before: Path, now: Path) -> Iterator[str]:
    if before.read_bytes() == now.read_bytes():
        return
    ours, theirs = rundir.read_metrics(before), rundir.read_metrics(now)
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            yield f"{rundir.METRICS}: first at step {one['step']}: {_first_difference(one, other)}"
            break
    if len(ours) != len(theirs):
        yield f"{rundir.METRICS}: {len(ours)} records in the run, {len(theirs)} in the replay"
    elif ours == theirs:
        yield f"{rundir.METRICS}: the same numbers, written otherwise"


def _compare_results(before: Path, now: Path) -> Iterator[str]:
    ours, theirs = ({key: value for key, value in rundir.read_json(path).items() if key not in _LOOSE}
                    for path in (before, now))  # fmt: skip
    if ours != theirs:
        yield f"{rundir.DONE}: {_first_difference(ours, theirs)}"


def _compare_bytes(before: Path, now: Path) -> Iterator[str]:
    if before.read_bytes() != now.read_bytes():
        yield f"{before.name}: other contents"


def _compare_predictions(before: Path, now: Path) -> Iterator[str]:
    ours, theirs = (dict(np.load(io.BytesIO(path.read_bytes()))) for path in (before, now))
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            yield f"{before.name}: {name} has another shape, or is missing"
        elif ours[name].tobytes() != theirs[name].tobytes():
            rows = np.any((ours[name] != theirs[name]).reshape(len(ours[name]), -1), axis=1)
            gap = np.max(np.abs(ours[name].astype(np.float64) - theirs[name]))
            yield f"{before.name}: {name} differ in {rows.sum()} of {len(rows)} rows, by up to {gap:.3g}"


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name all numbers that differ, and say of the first by how much."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    first = names[0]
    was, is_now = before.get(first), now.get(first)
    gap = f", by {abs(is_now - was):.3g}" if isinstance(was, float | int) and isinstance(is_now, float | int) else ""
    others = f"; also {', '.join(names[1:])}" if len(names) > 1 else ""
    return f"{first} was {was!r} and is {is_now!r}{gap}{others}"


def _with_tuples(value: Any) -> Any:
    """Make tuples of lists, as config files have them: JSON has no others."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


_COMPARED = {
    rundir.METRICS: _compare_metrics,
    rundir.DONE: _compare_results,
    EVALUATIONS: _compare_bytes,
    PREDICTIONS: _compare_predictions,
}
