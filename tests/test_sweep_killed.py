"""A study of real runs, killed again and again, ends with the table of one that was left alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.small_runs import make_config, metrics_of, write_model, write_pictures
from tests.stand_in import ROOT, wait_until_free
from tests.test_sweep import RATE
from tljax import rundir
from tljax.ablation.grid import Study
from tljax.tasks.studies import plan_runs

NUM_KILLS = 10
TIMEOUT_S = 600
FILE = """
from pathlib import Path
from tests.test_sweep_killed import small_study

def get_study():
    return small_study(Path({root!r}))
"""


def small_study(root):
    settings = {"epochs": 20, "checkpoint_every": 5, "evaluate_every": 10, "cache": "always", "keep": "best"}
    config = make_config(root, finetune=settings, prefix={"dtype": "float32", "batch_size": 8})
    return Study(
        slug="killed", title="Killed", question="Does it go on?", task="finetune", config=config, metric="accuracy",
        factors={RATE: [0.01, 0.1, 1.0]}, seeds=[0, 1],
    )  # fmt: skip


def start(root, workdir, together):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "tljax.cli", "sweep", str(root / "sweep.py"), f"--workdir={workdir}"]
    with open(root / "printed.txt", "ab") as file:
        return subprocess.Popen(
            [*call, "--max_parallel=2", f"--together={together}"], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def children_of(process):
    """The processes that a sweep has started; none where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finished(planned):
    """When each finished run was finished, and how often a process of its own was started for it."""
    found = {}
    for name, run in planned.runs.items():
        done = Path(run.workdir, rundir.DONE)
        if done.exists():
            printed = run.log().read_text() if run.log().exists() else ""
            found[name] = (done.stat().st_mtime_ns, printed.count("== started at"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("together", ["auto", "never"])
def test_a_study_killed_at_random_points_ends_with_the_same_table(tmp_path, together):
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    (tmp_path / "sweep.py").write_text(FILE.format(root=str(tmp_path)))
    study = small_study(tmp_path)
    began = time.monotonic()
    assert start(tmp_path, tmp_path / "whole", together).wait(TIMEOUT_S) == 0
    seconds = time.monotonic() - began
    planned = plan_runs(study, tmp_path / "killed")
    before: dict[str, tuple[int, int]] = {}
    num_alive = 0
    rng = np.random.default_rng(0)
    for index in range(NUM_KILLS):
        sweep = start(tmp_path, tmp_path / "killed", together)
        with contextlib.suppress(subprocess.TimeoutExpired):
            sweep.wait(rng.uniform(0, seconds / 3))
        num_alive += sweep.poll() is None
        children = children_of(sweep)
        # The sweep, which tells its runs to end; one run, and the sweep soon after; all at once.
        if index % 3 == 1:
            kill(children[:1])
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.wait(rng.uniform(0, 1))
        kill([sweep.pid] if sweep.poll() is None else [])
        kill(children if index % 3 == 2 else [])
        sweep.wait()
        for run in planned.runs.values():
            if Path(run.workdir, rundir.LOCK).exists():
                wait_until_free(Path(run.workdir))
        now = finished(planned)
        assert {name: now[name] for name in before} == before, "a finished run was started again"
        before = now
    assert num_alive >= NUM_KILLS // 2
    assert start(tmp_path, tmp_path / "killed", together).wait(TIMEOUT_S) == 0
    now = finished(planned)
    assert {name: now[name] for name in before} == before
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert {num_started > 0 for _, num_started in now.values()} == {together == "never"}
    assert len(tables[0].splitlines()) == 7
    for name in planned.runs:
        folders = [tmp_path / study / "runs" / name for study in ("killed", "whole")]
        assert metrics_of(folders[0]) == metrics_of(folders[1])
