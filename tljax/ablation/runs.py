"""A run that can be launched, how it ended, and what a launcher keeps of it in its run directory."""

import os
import pprint
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.processes import REQUEUE
from tljax.rundir import LAUNCH

CONFIG = "config.py"
JOB = "job.json"
ENDED = "ended.json"

DONE, RUNNING, PENDING, FAILED, PREEMPTED = "done", "running", "pending", "failed", "preempted"
STATES = (DONE, RUNNING, PENDING, PREEMPTED, FAILED)
TAIL_LINES = 12
_TAIL_BYTES = 20_000
_HEADER = "== started at "
# How the command line begins what it has to say of an error.
_ERROR = "tljax: "

_CONFIG_TEXT = '''"""What `tljax launch` runs in {workdir}:

    tljax {task} --config={file} --workdir={workdir}
"""

from math import inf, nan  # noqa: F401

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config of this run."""
    del arg
    return ml_collections.ConfigDict(
{values}
    )
'''


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: what `tljax TASK --config=FILE --workdir=DIR` would do.

    Args:
        task: its name.
        config: plain values, as a config file gives them.
        workdir: run directory.
    """

    task: str
    config: Mapping[str, Any]
    workdir: str | os.PathLike

    @property
    def folder(self) -> Path:
        """Where a launcher keeps what it needs of the run."""
        return Path(self.workdir) / LAUNCH

    def log(self, process: int = 0) -> Path:
        """Return the file for what a process of the run prints, start after start."""
        return log_file(self.folder, process)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run has come.

    Args:
        run: the run.
        state: one of `STATES`; "preempted" has been interrupted, and goes on when it is started again.
        detail: what else there is to say: a job, a reason.
        log: file with what the run has printed; None before its first start.
        results: of a finished run.
    """

    run: Run
    state: str
    detail: str = ""
    log: Path | None = None
    results: Mapping[str, float] | None = None


def ended_of(run: Run) -> Outcome | None:
    """Return how the last job of a run says that it ended before the end of the run; None where it says nothing."""
    path = run.folder / ENDED
    # Made a moment before it is written.
    if not path.exists() or not path.stat().st_size:
        return None
    ended = rundir.read_json(path)
    state = PREEMPTED if is_interrupted(ended["status"]) else FAILED
    return Outcome(run=run, state=state, detail=ended["reason"], log=run.log(ended["process"]))


# Returns the results of a finished run, or None; raises a ValueError where the directory holds another run.
Find = Callable[[Run], dict[str, float] | None]


def log_file(folder: str | os.PathLike, process: int) -> Path:
    """Return the log of a process in the launcher's folder of a run."""
    return Path(folder, f"log_{process}.txt" if process else "log.txt")


def unfinished(runs: Sequence[Run], find: Find) -> list[Run]:
    """Return the runs that are to be started.

    Raises:
        ValueError: two runs have one directory, or directories hold runs of other configs; all are named.
    """
    problems, rest, seen = [], [], set()
    for run in runs:
        folder = Path(run.workdir).absolute()
        if folder in seen:
            problems.append(f"two runs have the workdir {run.workdir}; give each its own")
        seen.add(folder)
        try:
            found = find(run)
        except ValueError as error:
            problems.append(str(error))
            continue
        if found is None:
            rest.append(run)
    if problems:
        raise ValueError("\n".join(problems))
    return rest


def prepare(run: Run) -> list[str]:
    """Write the config of a run into its directory, and return the arguments with which `tljax` runs it.

    A user would type the same, so what happens to a run can be repeated by hand.

    Raises:
        ValueError: the config has values that no config file can give.
    """
    workdir = Path(run.workdir).absolute()
    _check_plain(run.config, "config")
    run.folder.mkdir(parents=True, exist_ok=True)
    file = run.folder.absolute() / CONFIG
    values = pprint.pformat(dict(run.config), width=100, sort_dicts=True)
    indented = "\n".join(f"        {line}" for line in values.splitlines())
    text = _CONFIG_TEXT.format(task=run.task, file=file, workdir=workdir, values=indented)
    rundir.write_bytes(file, text.encode())
    return [run.task, f"--config={file}", f"--workdir={workdir}"]


def _check_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or "." in key:
                raise ValueError(f"{name} has the key {key!r}; a config file has strings without dots for keys")
            _check_plain(item, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{name}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(
            f"{name} is a {type(value).__name__}, wanted a number, a string, None, or lists, tuples and dicts of them"
        )


def is_interrupted(status: int) -> bool:
    """Tell the exit status of a process that was told to end, and lost nothing, from that of a failure."""
    # SIGTERM ends a process at once as long as it has not begun to work.
    return status in (REQUEUE, -signal.SIGTERM)


def describe_status(status: int) -> str:
    """Say how a process ended."""
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def begin_log(log: Path) -> None:
    """Write the line that parts what a new start prints from what is in its log already."""
    with open(log, "a") as file:
        file.write(f"{_HEADER}{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")


def log_tail(log: Path) -> str:
    """Return what a log says of the end of the last start: its error where it has one, else its last lines.

    Of a line that was overwritten again and again, as by a progress bar, there is the end alone.
    """
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    text = text.rpartition(_HEADER)[2]
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith(_ERROR)]
    return "\n".join(lines[errors[-1] :][:TAIL_LINES] if errors else lines[-TAIL_LINES:])


def name_of(run: Run, runs: Collection[Run]) -> str:
    """Return what tells a run from the others: its directory, without what all have in common."""
    paths = [Path(other.workdir).absolute() for other in runs]
    mine = Path(run.workdir).absolute()
    if len(paths) < 2:
        return mine.name
    return str(mine.relative_to(os.path.commonpath(paths)))
