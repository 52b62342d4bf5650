"""The record of a run that what a phase froze was the same at its end as at its beginning, kills in between or not."""

import os
from pathlib import Path
from typing import Any

from tljax import rundir


def note_beginning(path: str | os.PathLike, phase: int, digest: str) -> None:
    """Write the hash of what a phase freezes, before its first step; what is there of this phase and later ones goes.

    Args:
        path: a JSON file: a list of "phase" (from 0), and "before" and "after", of which the last is null until the
            phase ends.
        phase: number of the phase.
        digest: its hash.
    """
    rows = [row for row in _read(path) if row["phase"] < phase]
    rundir.write_json(path, [*rows, {"phase": phase, "before": digest, "after": None}])


def note_end(path: str | os.PathLike, phase: int, digest: str) -> str:
    """Write the hash of what a phase has frozen, after its last step; return that from before the first.

    Raises:
        ValueError: the record has none of this phase.
    """
    rows = _read(path)
    before = [row["before"] for row in rows if row["phase"] == phase]
    if not before:
        raise ValueError(
            f"{path} does not say what phase {phase} began with, so nothing can be said of what it froze; bring the "
            "file back, or begin the run anew in another directory"
        )
    rundir.write_json(path, [{**row, "after": digest} if row["phase"] == phase else row for row in rows])
    return before[0]


def _read(path: str | os.PathLike) -> list[dict[str, Any]]:
    return rundir.read_json(path) if Path(path).exists() else []
