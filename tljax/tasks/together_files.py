"""What a group of runs that train together keeps on disk: its members, its checkpoints, and who has failed.

The folder of a group is beside the run directories, and each of these has a file that leads to it. Both go once all
members are done: what stays are ordinary run directories.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tljax import plain, rundir
from tljax.ablation.runs import Run

FOLDER = ".together"
# In a run directory; hidden, as it is no work of the run.
MARKER = ".together.json"
CHECKPOINTS = "checkpoints"
_MEMBERS = "members.json"
_FAILED = "failed.json"


def found_group(runs: Sequence[Run]) -> Path:
    """Make the folder of a new group, and let the run directories, which exist, lead to it."""
    workdirs = [Path(run.workdir).absolute() for run in runs]
    beside = Path(os.path.commonpath([path.parent for path in workdirs])) / FOLDER
    rows = [
        {"task": run.task, "config": plain.as_read(run.config), "workdir": os.path.relpath(path, beside)}
        for run, path in zip(runs, workdirs, strict=True)
    ]
    folder = beside / plain.fingerprint(rows)[:16]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rundir.write_json(folder / _MEMBERS, rows)
    for path in workdirs:
        rundir.write_json(path / MARKER, {"folder": os.path.relpath(folder, path)})
    return folder


def folder_of(run: Run) -> Path | None:
    """Return the folder of the group that a run has begun with; None where it has not, or the group is over."""
    marker = Path(run.workdir) / MARKER
    if not marker.exists():
        return None
    folder = Path(os.path.normpath(Path(run.workdir).absolute() / rundir.read_json(marker)["folder"]))
    return folder if (folder / _MEMBERS).exists() else None


def members_of(folder: Path) -> list[Run]:
    """Return the runs of a group, in the order of its stacked arrays."""
    return [
        Run(task=row["task"], config=row["config"], workdir=os.path.normpath(folder.parent / row["workdir"]))
        for row in rundir.read_json(folder / _MEMBERS)
    ]


def read_failed(folder: Path) -> dict[int, str]:
    """Return the members that have ended early: {place: why}."""
    path = folder / _FAILED
    return {int(place): why for place, why in rundir.read_json(path).items()} if path.exists() else {}


def note_failed(folder: Path, failed: dict[int, str]) -> None:
    """Write down the members that have ended early, before a checkpoint holds what became of them."""
    rundir.write_json(folder / _FAILED, {str(place): why for place, why in failed.items()})


def leave_groups(runs: Sequence[Run]) -> None:
    """Give up the groups that runs have begun with and not ended: those that are not done begin again, alone.

    Raises:
        ValueError: a process works on one of them.
    """
    for folder in dict.fromkeys(folder for folder in map(folder_of, runs) if folder is not None):
        members = members_of(folder)
        busy = [run.workdir for run in members if rundir.is_in_use(run.workdir)]
        if busy:
            raise ValueError(f"another process works in {busy[0]}, which trains together with others; wait for it")
        close_group(folder, members)


def close_group(folder: Path, runs: Sequence[Run]) -> None:
    """Take the folder of a group away; its members are done or have failed."""
    # A folder without it is no group.
    (folder / _MEMBERS).unlink()
    shutil.rmtree(folder)
    for run in runs:
        (Path(run.workdir) / MARKER).unlink(missing_ok=True)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
