"""Stands in for `python -m tljax.cli` where a sweep trains runs together, or alone: ends runs as a plan says.

`plan.json` beside the run directories has, for a run by name, what becomes of it together: "done", "failed" or
"pending", the first of these where it is not named; and for "job", how the process ends: "well", or with a number, its
exit status or, negative, the signal. A run alone is done.
"""

import json
import os
import runpy
import sys
from pathlib import Path

PLAN, STARTS = "plan.json", "starts.txt"


def main() -> None:
    task, config, workdir = sys.argv[1:]
    values = runpy.run_path(config.removeprefix("--config="))["get_config"]().to_dict()
    folder = Path(workdir.removeprefix("--workdir="))
    runs = values["runs"] if task == "together" else [{"task": task, "config": values, "workdir": str(folder)}]
    root = Path(runs[0]["workdir"]).parent
    plan = json.loads((root / PLAN).read_text()) if task == "together" else {}
    with open(root / STARTS, "a") as file:
        file.write(json.dumps([task, sorted(Path(run["workdir"]).name for run in runs)]) + "\n")
    rows = {}
    for run in runs:
        path = Path(run["workdir"])
        state = plan.get(path.name, "done")
        rows[run["workdir"]] = {"state": state, "detail": "" if state == "done" else f"it is {state}"}
        if state == "done":
            path.mkdir(exist_ok=True)
            (path / "config.json").write_text(json.dumps({"task": run["task"], "config": run["config"]}))
            (path / "done.json").write_text(json.dumps({"accuracy": 0.5}))
    end = plan.get("job", "well")
    if end != "well":
        print("it did not work", file=sys.stderr, flush=True)
        os.kill(os.getpid(), -end) if end < 0 else sys.exit(end)
    if task == "together":
        (folder / "outcomes.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
