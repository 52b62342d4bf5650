"""Files of a run: written whole or not at all, with the environment that made them."""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tljax import plain
from tljax.environment import environment

CONFIG = "config.json"
DONE = "done.json"
ENV = "env.json"
# Of a run of a study that has failed.
ERROR = "error.json"
INPUTS = "inputs.json"
# A folder in which a launcher of runs keeps its own files.
LAUNCH = "launch"
LOCK = ".lock"
METRICS = "metrics.jsonl"
# What depends on the machine and its load, apart from the metrics, which do not.
TIMING = "timing.jsonl"

log = logging.getLogger(__name__)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give another name beside `path` to write to; the file gets its own name when the context is left.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise  # not of the file system: what was to be written did not come
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; the earlier file, if any, is kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    # A rename lives in the folder, not in the file.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, default=plain.to_json) + "\n").encode())


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and run again") from error


def append_metrics(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Append one line of JSON; as `append_all`."""
    append_all(path, [record])


def append_all(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Append a line of JSON for each record.

    Raises:
        OSError: the disk is full or the file cannot be written; `read_metrics` leaves out a line cut short.
    """
    lines = [json.dumps(dict(record), sort_keys=True, default=plain.to_json) + "\n" for record in records]
    try:
        with open(path, "a") as file:
            file.write("".join(lines))
    except OSError as error:
        raise OSError(error.errno, f"cannot append to {path}: {error.strerror}; make room and run again") from error


def sync_metrics(path: str | os.PathLike) -> None:
    """Make the lines so far outlive a loss of power, as the checkpoint does that is saved after them."""
    with open(path, "a") as file:
        os.fsync(file.fileno())


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the whole lines of a metrics file; a last line cut short by a killed process is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def keep_metrics_before(path: str | os.PathLike, step: int) -> None:
    """Drop the records at or after `step`, which a resumed run is about to write again."""
    records = [record for record in read_metrics(path) if record["step"] < step]
    write_bytes(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode())


@contextlib.contextmanager
def only_process(workdir: str | os.PathLike) -> Iterator[None]:
    """Keep other processes out of a run directory until the context is left, or this process ends, however it ends.

    Args:
        workdir: made if it is not there.

    Raises:
        ValueError: another process works in it.
        OSError: the folder cannot be written, or its file system has no locks.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process works in {workdir}; wait for it, or use another --workdir") from error
        except OSError as error:
            raise OSError(error.errno, f"cannot lock {workdir}: {error.strerror}; use a --workdir elsewhere") from error
        yield


def is_in_use(workdir: str | os.PathLike) -> bool:
    """Tell whether a process works in a run directory, as `only_process` has it; one that is not there is free."""
    path = Path(workdir) / LOCK
    if not path.exists():
        return False
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def find(
    workdir: str | os.PathLike, task: str, config: Mapping[str, Any], *, has_parts: bool = False
) -> dict[str, float] | None:
    """Return the results of a run if it is finished; changes nothing.

    Args:
        workdir: there or not.
        task: name of the task that is to run in it.
        config: plain values that determine the run.
        has_parts: all work is in run directories inside of this one, each of which checks its own config, so that
            another config of the same task may go on here.

    Raises:
        ValueError: the directory has work of another task or config; the differences are listed.
    """
    workdir = Path(workdir)
    if not (workdir / CONFIG).exists():
        return None
    problems = plain.differences(read_json(workdir / CONFIG), plain.as_read({"task": task, "config": config}))
    is_refused = any(not has_parts or problem.startswith("task:") for problem in problems)
    if is_refused and has_work(workdir):
        raise ValueError(
            f"{workdir} holds a run of another config; use another --workdir, or remove this one:\n  "
            + "\n  ".join(problems)
        )
    return read_json(workdir / DONE) if (workdir / DONE).exists() and not problems else None


def start(
    workdir: str | os.PathLike,
    task: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    execution: Mapping[str, Any] | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Note what runs, on what and where, in a directory that `find` let pass and that is not finished.

    Args:
        workdir: an existing folder.
        task: as for `find`.
        config: as for `find`.
        inputs: what the names in the config stand for, such as hashes of weights and images.
        execution: how it runs this time, for the record.
        more: what else there is to say of that.

    Raises:
        ValueError: the directory has work on other inputs; the differences are listed, and nothing has changed.
    """
    workdir = Path(workdir)
    for name, value in ((INPUTS, plain.as_read(inputs)), (CONFIG, plain.as_read({"task": task, "config": config}))):
        path = workdir / name
        is_there = path.exists()
        problems = plain.differences(read_json(path), value) if is_there else []
        if problems and name == INPUTS and has_work(workdir):
            raise ValueError(
                f"the inputs of the run in {workdir} have changed since it began; bring them back, or use another "
                "--workdir:\n  " + "\n  ".join(problems)
            )
        if problems or not is_there:
            (workdir / DONE).unlink(missing_ok=True)
            write_json(path, value)
    # Only starts that left something have a part in the results.
    earlier = starts(workdir) if has_work(workdir) else []
    write_json(workdir / ENV, [*earlier, {**environment(), "execution": dict(execution or {}), **(more or {})}])


def starts(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the `environment` of each start of a run, but for those that left no work."""
    path = Path(workdir) / ENV
    return read_json(path) if path.exists() else []


def has_work(workdir: str | os.PathLike) -> bool:
    """Tell whether a run directory, or one inside of it, holds more than what a start writes."""
    return any(
        has_work(entry) if entry.is_dir() else entry.name not in (CONFIG, ENV, ERROR, INPUTS)
        for entry in Path(workdir).iterdir()
        if entry.name != LAUNCH and not entry.name.startswith(".")
    )
