"""What the tests on SLURM see of its jobs, and do to them."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tljax import rundir
from tljax.ablation.slurm_queue import read_queue

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 180
# Of each process.
DEVICES = 2


def slurm(*command):
    return subprocess.run(command, check=True, text=True, capture_output=True, timeout=60).stdout


def wait_for(what, condition):
    """Wait until a condition gives something, and return that."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} in {PATIENCE_S} s")


def in_training(workdir, steps=10):
    """Whether a run has begun to train, and has not ended."""
    metrics = workdir / rundir.METRICS
    is_begun = metrics.exists() and metrics.read_bytes().count(b"\n") >= steps
    return is_begun and not (workdir / rundir.DONE).exists()


def job_of(workdir):
    job = rundir.read_json(workdir / "launch" / "job.json")
    return read_queue()[job["name"], job["index"]]


def processes_of(job_id):
    """The processes of a job, by their number in it."""
    found = {}
    for folder in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"submitit.core._submit" in (folder / "cmdline").read_bytes():
                lines = (folder / "environ").read_text().split("\0")
                variables = dict(line.split("=", 1) for line in lines if "=" in line)
                is_srun = (folder / "comm").read_text().strip() == "srun"
                mine = {variables["SLURM_JOB_ID"]}
                if "SLURM_ARRAY_JOB_ID" in variables:
                    mine = {f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"}
                if not is_srun and job_id in mine:
                    found[int(variables["SLURM_PROCID"])] = int(folder.name)
    return found


def hold(workdir):
    """Stop a run that trains, so that it cannot come to its end before it is interrupted."""
    os.kill(processes_of(job_of(workdir).job_id)[0], signal.SIGSTOP)
    assert not (workdir / rundir.DONE).exists(), "the run is too short"


def watch_signals(workdir):
    """Return a function that tells whether SIGTERM has come to a run that is held."""
    status = Path(f"/proc/{processes_of(job_of(workdir).job_id)[0]}/status")

    def is_signalled():
        # SLURM may have let it go on, and it may have ended.
        with contextlib.suppress(FileNotFoundError):
            waiting = re.findall(r"ShdPnd:\s+([0-9a-f]+)", status.read_text())
            return int(waiting[0], 16) & 1 << signal.SIGTERM - 1
        return True

    return is_signalled


def release(workdir):
    """Let go on what is held; SLURM does it, too, in most cases."""
    for process in processes_of(job_of(workdir).job_id).values():
        os.kill(process, signal.SIGCONT)


def starts(workdir):
    """How often a run has begun to work on its files."""
    return len(rundir.starts(workdir))


def assert_same_bits(run, undisturbed):
    for name in ("tuned.safetensors", "metrics.jsonl", "predictions.npz", "frozen.json", "evaluations.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), f"{run / name}"
    results = [rundir.read_json(folder / rundir.DONE) for folder in (run, undisturbed)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
