"""Stands in for `python -m tljax.cli`: does at each start of a run what a plan says, in a fraction of a second.

`plan.json` beside the run directories has, for each of them by name, what to do start by start, the last for all later
ones: "finish", "fail", "raise", "give way" (end as after SIGTERM), "hold" (say so, and wait for SIGTERM), "linger"
(hold, and then finish), or "meet NAME" (wait until another run meets it there, and finish).
"""

import contextlib
import fcntl
import json
import os
import runpy
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Nothing here waits for so long.
ALARM_S = 100


def write_plan(root: Path, **plans: str) -> None:
    """Say what runs do: `write_plan(root, seed_0="fail, finish")`."""
    root.mkdir(exist_ok=True)
    (root / "plan.json").write_text(json.dumps({name: text.split(", ") for name, text in plans.items()}))


def starts(workdir: Path) -> list[int]:
    """The process of each start of a run."""
    path = workdir / "starts.txt"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(root: Path) -> list[list[str]]:
    """What happened, in order: (what, run)."""
    return [line.split() for line in (root / "events.txt").read_text().splitlines()]


def wait_until_free(workdir: Path) -> None:
    """Wait until no process works in a run directory."""
    with open(workdir / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def expect_holds(root: Path, names: Sequence[str]) -> dict[str, int]:
    """Get ready to hear of runs that hold; to be called before they start."""
    for name in names:
        os.mkfifo(root / f"{name}.held")
    return {name: os.open(root / f"{name}.held", os.O_RDONLY | os.O_NONBLOCK) for name in names}


def await_holds(holds: dict[str, int]) -> None:
    """Wait until all of them hold."""
    for name, reader in holds.items():
        ready, _, _ = select.select([reader], [], [], ALARM_S)
        assert ready, f"{name} does not hold in time"
        assert os.read(reader, 1) == b"h"
        os.close(reader)


def _note(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def _end(*_: object) -> None:
    # Once: a second signal would cut off what is noted at the end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(85)


def main() -> None:
    signal.alarm(ALARM_S)
    signal.signal(signal.SIGTERM, _end)
    task, config, workdir = sys.argv[1:]
    folder = Path(workdir.removeprefix("--workdir="))
    root, name = folder.parent, folder.name
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another process works here")
        plan = json.loads((root / "plan.json").read_text())[name]
        what, _, where = plan[min(len(starts(folder)), len(plan) - 1)].partition(" ")
        _note(folder / "starts.txt", str(os.getpid()))
        _note(root / "events.txt", f"start {name}")
        print(f"{task} {name}: {what}", flush=True)
        # Ctrl-C is for the launcher alone.
        signal.signal(signal.SIGINT, lambda *_: _note(root / "events.txt", f"interrupt {name}"))
        try:
            _do(what, root, name, where)
        finally:
            _note(root / "events.txt", f"end {name}")
        values = runpy.run_path(config.removeprefix("--config="))["get_config"]().to_dict()
        (folder / "config.json").write_text(json.dumps({"task": task, "config": values}))
        (folder / "done.json").write_text(json.dumps({"accuracy": 0.5}))


def _do(what: str, root: Path, name: str, where: str) -> None:
    if what == "meet":
        _meet(root / where)
    elif what in ("hold", "linger"):
        (root / f"{name}.held").write_text("h")
        with contextlib.suppress(SystemExit) if what == "linger" else contextlib.nullcontext():
            while True:
                signal.pause()
    elif what == "raise":
        raise RuntimeError("something broke")
    elif what != "finish":
        print("it did not work" if what == "fail" else "told to end", file=sys.stderr)
        sys.exit(2 if what == "fail" else 85)


def _meet(path: Path) -> None:
    """Wait for another process at a FIFO, of which each of the two opens one end."""
    try:
        os.mkfifo(path)
        side = "w"
    except FileExistsError:
        side = "r"
    with open(path, side):
        pass


if __name__ == "__main__":
    main()
