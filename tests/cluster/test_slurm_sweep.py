"""A study of runs that are jobs of a real SLURM: failed, killed, retried, it ends with the table of the local pool."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.jobs import (
    PATIENCE_S,
    ROOT,
    assert_same_bits,
    hold,
    in_training,
    job_of,
    processes_of,
    release,
    slurm,
    wait_for,
)
from tests.small_runs import make_config, write_model
from tljax import rundir
from tljax.ablation.grid import Study
from tljax.ablation.slurm_queue import read_queue
from tljax.tasks.studies import plan_runs

pytestmark = pytest.mark.cluster

FLAGS = ("--on=slurm", "--timeout_min=20", "--cpus_per_task=4", "--poll_s=0.2")
FILE = """
from pathlib import Path
from tests.cluster.test_slurm_sweep import small_study

def get_study():
    return small_study(Path({root!r}))
"""


def small_study(root):
    settings = {"epochs": 200, "checkpoint_every": 100, "evaluate_every": 100}
    return Study(
        slug="jobs", title="Jobs", question="Which weights?", task="finetune", metric="accuracy", seeds=[0, 1],
        config=make_config(root, finetune=settings),
        factors={"model.name": [f"file:{root / name}" for name in ("vit", "late")]},
    )  # fmt: skip


def sweep_command(root, workdir, *flags):
    (root / "sweep.py").write_text(FILE.format(root=str(root)))
    return [sys.executable, "-m", "tljax.cli", "sweep", str(root / "sweep.py"), f"--workdir={workdir}", *flags]


def sweep(root, workdir, *flags):
    """Run a study; return the exit status and what it prints."""
    done = subprocess.run(
        sweep_command(root, workdir, *flags), cwd=ROOT, check=False, text=True, capture_output=True,
        timeout=3 * PATIENCE_S,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout


@contextlib.contextmanager
def sweeping(root, workdir, *flags):
    """A sweep that works in the background, and the file of what it prints; it is killed at the end."""
    printed = root / "printed.txt"
    with (
        open(printed, "w") as file,
        subprocess.Popen(sweep_command(root, workdir, *flags), cwd=ROOT, stdout=file, stderr=file) as process,
    ):
        yield process, printed
        process.kill()


def jobs_sent(prefix="finetune-"):
    """How many jobs SLURM has been given, those that have ended among them."""
    names = slurm("squeue", "--me", "--array", "--noheader", "--states=all", "--Format=Name:64").split()
    return sum(name.startswith(prefix) for name in names)


def starts_by_log(run):
    return (run / "launch" / "log.txt").read_text().count("== started at")


def test_a_study_that_fails_and_is_killed_ends_with_the_table_of_the_local_pool(root):
    study, sent_before = root / "study", jobs_sent()
    runs = [Path(run.workdir) for run in plan_runs(small_study(root), study).runs.values()]
    good, failing = runs[:2], runs[2:]
    with sweeping(root, study, *FLAGS) as (process, _):
        wait_for("no jobs came", lambda: len(read_queue()) == 4)
        process.send_signal(signal.SIGKILL)
    # Nobody sees them fail, as there are no such weights yet.
    wait_for("no run failed", lambda: all((run / "launch" / "ended.json").exists() for run in failing))
    for run in good:
        wait_for("the run does not train", lambda run=run: in_training(run))
        hold(run)
    wait_for("failed runs stay", lambda: len(read_queue()) == 2)

    with sweeping(root, study, *FLAGS) as (process, printed):
        wait_for("the jobs are not found", lambda: "2 runs are with SLURM already" in printed.read_text())
        os.kill(processes_of(job_of(good[0]).job_id)[0], signal.SIGKILL)
        release(good[1])
        assert process.wait(PATIENCE_S) == 1, printed.read_text()
        out = printed.read_text()
    print(out)
    assert "1 done, 1 half-finished, 2 failed" in out
    assert out.count("no file or folder") == 2
    assert [starts_by_log(run) for run in runs] == [1] * 4

    write_model(root / "late", seed=1)
    status, out = sweep(root, study, *FLAGS)
    assert status == 1
    assert "2 done, 2 failed" in out
    assert [starts_by_log(run) for run in runs] == [2, 1, 1, 1]
    status, out = sweep(root, study, *FLAGS, "--retry_failed")
    assert status == 0, out
    assert sweep(root, study, *FLAGS)[0] == 0
    assert [starts_by_log(run) for run in runs] == [2, 1, 2, 2]
    assert jobs_sent() - sent_before == 7

    status, out = sweep(root, root / "pool_study", "--max_parallel=2", "--together=never")
    assert status == 0, out
    assert (study / "results.csv").read_bytes() == (root / "pool_study" / "results.csv").read_bytes()
    for run in runs:
        assert_same_bits(run, root / "pool_study" / "runs" / run.name)
        assert not (run / rundir.ERROR).exists()
