"""What a job of SLURM does: the command of a run, and to queue again when it is told to end."""

import contextlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tljax import preemption
from tljax.ablation.runs import ENDED, begin_log, describe_status, log_file
from tljax.ablation.slurm_queue import requeue, state_of
from tljax.processes import REQUEUE, Preempted

PROGRAM = "tljax.cli"
# Beyond this SLURM has forgotten that it was to end a job.
_PATIENCE_S = 600


def run_job(arguments: Sequence[str], folder: str, max_requeues: int) -> None:
    """Run `tljax` in this process; SLURM runs it once for each task of the job.

    Interrupted, the job is requeued: by process 0, after its run has saved, which all processes of a run do together.
    The others wait to be ended, as an exit status of their own could make SLURM end process 0 too early.

    Args:
        arguments: of `tljax`.
        folder: the launcher's, of this run; for its logs, and for `ENDED`, which says why it has ended before its end.
        max_requeues: times that the job is requeued, by whomever.

    Raises:
        RuntimeError: the run has ended before its end.
    """
    process, restarts = int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if process == 0:
        Path(folder, ENDED).unlink(missing_ok=True)
    if restarts > max_requeues:
        _end(folder, process, REQUEUE, f"interrupted {restarts} times, see max_requeues")
    # submitit logs this signal, which SLURM sends with SIGTERM; a handler that logs may interrupt one who does.
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    log = log_file(folder, process)
    begin_log(log)
    with _printing_to(log):
        status = _run(arguments)
    if status == 0:
        return
    if status != REQUEUE:
        _end(folder, process, status, describe_status(status))
    # What comes now is to end this process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if process == 0:
        _requeue(folder)
    time.sleep(_PATIENCE_S)
    _end(folder, process, REQUEUE, f"was to be requeued, and SLURM has not ended it for {_PATIENCE_S} s")


def _requeue(folder: str) -> None:
    job_id = os.environ["SLURM_JOB_ID"]
    try:
        state = state_of(job_id)
        # A job that is cancelled, or has come to its limit, would come to life again.
        if state == "RUNNING":
            requeue(job_id)
            return
        reason = f"SLURM ends the job for good, which is {state or 'no longer known'}"
    except OSError as error:
        reason = str(error)
    _end(folder, 0, REQUEUE, f"interrupted, and not requeued: {reason}")


def _run(arguments: Sequence[str]) -> int:
    """Do what `python -m tljax.cli` does, in this process, which SLURM sends its signals to; return the exit status."""
    sys.argv = ["tljax", *arguments]
    try:
        with preemption.ending_at_once():
            runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)
    except Preempted as early:
        # Before the task has begun.
        print(f"tljax: {early}", file=sys.stderr)
        return REQUEUE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        # As the interpreter does, here and not later, so that it comes into the log of the run.
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Let what this process prints, from C++ too, go to a file."""
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for descriptor in kept:
            os.dup2(file, descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(file)


def _end(folder: str, process: int, status: int, reason: str) -> None:
    """Note why a run has ended before its end, unless another process of it has; then fail."""
    with contextlib.suppress(FileExistsError), open(Path(folder, ENDED), "x") as file:
        file.write(json.dumps({"process": process, "status": status, "reason": reason}))
    raise RuntimeError(f"{reason}; see the log of the run")
