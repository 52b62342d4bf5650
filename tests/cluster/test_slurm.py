"""Training as jobs of a real SLURM: interrupted in every way there is, it ends as it does undisturbed.

Run by `make test-cluster`. Whoever waits for SLURM has to look again and again.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cluster.jobs import (
    DEVICES,
    PATIENCE_S,
    ROOT,
    assert_same_bits,
    hold,
    in_training,
    job_of,
    processes_of,
    release,
    slurm,
    starts,
    wait_for,
    watch_signals,
)  # fmt: skip
from tests.small_runs import metrics_of
from tljax import rundir

pytestmark = pytest.mark.cluster

SEEDS = "--seeds=0-7"


@pytest.fixture(scope="module")
def pool(root):
    """The runs of all seeds, undisturbed, on this machine."""
    status, out = launch(root, root / "pool", SEEDS, "--on=local", "--max_parallel=2")
    assert status == 0, out
    assert [starts(run) for run in (root / "pool").glob("seed_*")] == [1] * 8
    return root / "pool"


def launch_command(root, workdir, *flags):
    config = f"--config=tests/cluster/tiny.py:{root}"
    return [sys.executable, "-m", "tljax.cli", "launch", "finetune", config, f"--workdir={workdir}", *flags]


def launch(root, workdir, *flags, **environment):
    """Launch runs; return the exit status and what the launcher prints."""
    done = subprocess.run(
        launch_command(root, workdir, *flags), cwd=ROOT, env={**os.environ, **environment}, check=False, text=True,
        capture_output=True, timeout=3 * PATIENCE_S,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout


def wait_until_requeued(workdir):
    wait_for("the run was not requeued", lambda: job_of(workdir).restarts)


def test_an_array_preempted_in_three_ways_gives_the_bits_of_the_local_pool(root, pool):
    folder = root / "array"
    flags = (SEEDS, "--on=slurm", "--timeout_min=20", "--cpus_per_task=4", "--max_parallel=4", "--poll_s=1")
    status, out = launch(root, folder, *flags, "--nowait")
    assert status == 1
    assert out.count("pending") + out.count("running") == 8
    runs = [folder / f"seed_{seed}" for seed in range(8)]

    held: list[Path] = []
    while len(held) < 3:
        held.append(wait_for("no run trains", lambda: next(filter(in_training, set(runs) - set(held)), None)))
        hold(held[-1])
    first, second, _ = held
    is_signalled = watch_signals(first)
    # Of an array that has tasks waiting, scancel sends the signal and then tries again for a while: not waited for.
    with subprocess.Popen(["scancel", "--signal=TERM", job_of(first).job_id]):
        wait_for("no signal came", is_signalled)
        release(first)
    # SLURM lets go on what it ends.
    slurm("scontrol", "requeue", job_of(second).job_id)
    # All of both nodes, for a job that comes first.
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    for run in held:
        wait_until_requeued(run)
    status, out = launch(root, folder, *flags)
    assert status == 0, out
    assert out.count("done") == 8
    # The job that comes first pushes out whatever runs then, so others may have begun twice, too.
    assert all(starts(run) >= 2 for run in held)
    for run in runs:
        assert_same_bits(run, pool / run.name)


def test_a_run_at_its_time_limit_saves_and_goes_on(root, pool):
    folder, flags = root / "limit", ("--on=slurm", "--timeout_min=20", "--signal_delay_s=90", "--poll_s=1")
    launch(root, folder, *flags, "--nowait")
    wait_for("the run does not train", lambda: in_training(folder))
    job_id = job_of(folder).job_id
    hold(folder)
    is_signalled = watch_signals(folder)
    # SLURM looks at limits twice a minute.
    slurm("scontrol", "update", f"JobId={job_id}", "TimeLimit=2")
    wait_for("no signal came", is_signalled)
    release(folder)
    wait_until_requeued(folder)
    slurm("scontrol", "update", f"JobId={job_id}", "TimeLimit=20")
    status, out = launch(root, folder, *flags)
    assert status == 0, out
    assert starts(folder) == 2
    # The seed of the config is 0.
    assert_same_bits(folder, pool / "seed_0")


def together(root, workdir):
    """Flags of a short run that processes share."""
    return root, workdir, "--config.finetune.epochs=10", "--config.schedule.learning_rate=0.01"


@pytest.fixture(scope="module")
def alone(root):
    """The run of the tests below in one process, with as many devices as two have."""
    flags = os.environ["XLA_FLAGS"].replace(f"count={DEVICES}", f"count={2 * DEVICES}")
    status, out = launch(*together(root, root / "alone"), "--on=local", XLA_FLAGS=flags)
    assert status == 0, out
    return root / "alone"


def assert_same_numbers(run, other):
    """Equal to float32 rounding: sums over the batch are added up in another order."""
    params, others = load_file(run / "tuned.safetensors"), load_file(other / "tuned.safetensors")
    assert params.keys() == others.keys()
    for path, value in params.items():
        np.testing.assert_allclose(value, others[path], rtol=1e-5, atol=1e-6, err_msg=path)
    losses, other_losses = ([line["loss"] for line in metrics_of(folder) if "loss" in line] for folder in (run, other))
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    assert len(losses) == 40


def test_two_processes_on_two_nodes_train_together_and_end_together(root, alone):
    folder = root / "together"
    flags = ("--on=slurm", "--timeout_min=20", "--tasks=2", "--nodes=2", "--cpus_per_task=4", "--poll_s=1")
    launch(*together(root, folder), *flags, "--nowait")
    wait_for("the run does not train", lambda: in_training(folder, steps=3))
    os.kill(processes_of(job_of(folder).job_id)[1], signal.SIGKILL)
    status, out = launch(*together(root, folder), *flags)
    assert status == 1
    assert "failed" in out
    assert "process 1 has not been heard of" in out
    # The same command again.
    status, out = launch(*together(root, folder), *flags)
    assert status == 0, out
    assert starts(folder) == 2
    assert "process 1 of 2, 2 devices here" in (folder / "launch" / "log_1.txt").read_text()
    assert_same_numbers(folder, alone)


def script_of_the_document():
    """The script for sbatch that docs/cluster.md shows."""
    return re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)[0]


def test_the_script_of_the_document_goes_on_after_sigterm(root, alone):
    folder = root / "script"
    (root / "job.sh").write_text(script_of_the_document())
    arguments = [
        f"--config=tests/cluster/tiny.py:{root}", f"--workdir={folder}", "--config.finetune.epochs=10",
        "--config.schedule.learning_rate=0.01",
    ]  # fmt: skip
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--time=20", f"--output={root}/job.txt"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sbatch", "--parsable", *options, str(root / "job.sh"), "finetune", *arguments]
    sent = subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, capture_output=True, timeout=60)
    job_id = sent.stdout.strip()
    wait_for("the run does not train", lambda: in_training(folder, steps=3))
    slurm("scancel", "--signal=TERM", job_id)
    wait_for("the run does not end", lambda: (folder / rundir.DONE).exists())
    assert starts(folder) == 2
    wait_for("the job does not end", lambda: not slurm("squeue", "--noheader"))
    assert_same_numbers(folder, alone)


def test_a_cancelled_job_stays_cancelled(root):
    folder, flags = root / "cancelled", ("--on=slurm", "--timeout_min=20", "--poll_s=1")
    launch(root, folder, *flags, "--nowait")
    wait_for("the run does not train", lambda: in_training(folder))
    slurm("scancel", job_of(folder).job_id)
    wait_for("the job does not end", lambda: not slurm("squeue", "--noheader"))
    assert not (folder / rundir.DONE).exists()
    assert starts(folder) == 1
