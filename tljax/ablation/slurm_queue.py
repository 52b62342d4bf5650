"""What SLURM says of our jobs. Not what became of them: sacct, which knows, is off on many clusters."""

import logging
import os
import subprocess
from dataclasses import dataclass
from time import monotonic, sleep

# With its controller down, a command of SLURM waits for minutes.
_TIMEOUT_S = 60
# So long it may stay away, while jobs go on.
_LOST_S = 900
_RETRY_S = 10
_COLUMNS = "Name:128,JobArrayID:48,State:32,RestartCnt:16,Reason:128"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job, or one of an array, that waits, runs or is about to end.

    Args:
        job_id: as scancel takes it.
        state: in SLURM's words, as "RUNNING".
        restarts: times that it was requeued.
        reason: why it waits.
    """

    job_id: str
    state: str
    restarts: int
    reason: str


def read_queue() -> dict[tuple[str, int], Queued]:
    """Return our jobs by their name and their place in an array, which is 0 where there is none.

    Raises:
        OSError: SLURM does not answer.
    """
    text = _call(["squeue", "--me", "--array", "--noheader", f"--Format={_COLUMNS}"])
    jobs = {}
    for line in text.splitlines():
        # The reason may be of several words.
        name, job_id, state, restarts, *reason = line.split(None, 4)
        index = job_id.partition("_")[2]
        if index == "" or index.isdigit():
            jobs[name, int(index or 0)] = Queued(
                job_id=job_id, state=state, restarts=int(restarts), reason="".join(reason).strip()
            )
    return jobs


def read_queue_patiently() -> dict[tuple[str, int], Queued]:
    """Return what `read_queue` does, and wait for a while where SLURM does not answer.

    Raises:
        OSError: it has not answered for a long time.
    """
    deadline = monotonic() + _LOST_S
    while True:
        try:
            return read_queue()
        except OSError as error:
            if monotonic() > deadline:
                raise
            log.warning("%s; asking again", error)
            sleep(_RETRY_S)


def state_of(job_id: str) -> str:
    """Return the state of a job, or an empty string where SLURM has none of that id.

    Raises:
        OSError: SLURM does not answer.
    """
    return _call(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]).strip()


def requeue(job_id: str) -> None:
    """End a job, and have it start again.

    Raises:
        OSError: SLURM does not answer, or does not do it.
    """
    _call(["scontrol", "requeue", job_id])


def _call(command: list[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True, env=environment
        )  # fmt: skip
    except FileNotFoundError as error:
        raise OSError(f"there is no {command[0]} here; start from a machine of the cluster that has SLURM") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"SLURM has not answered {' '.join(command)} for {_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(command)} failed: {error.stderr.strip() or error.returncode}") from error
    return done.stdout
