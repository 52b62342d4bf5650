"""Runs as jobs of SLURM, sent through submitit: one array for all that are started together."""

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.ablation.runs import ENDED, JOB, Find, Outcome, Run, prepare
from tljax.ablation.slurm_follow import Ended, Patience, follow, queued
from tljax.ablation.slurm_job import run_job
from tljax.ablation.slurm_queue import read_queue_patiently

# In the launcher's folder: the scripts, pickles and own logs of submitit.
SUBMITIT = "submitit"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Jobs of a cluster; what is None is left to SLURM.

    Args:
        timeout_min: a job that has not ended by then saves, and is queued again.
        partition: of the cluster.
        tasks: processes of one run, over all its nodes, which train together.
        nodes: that they are spread over evenly.
        gpus_per_task: of each process; one where there are several, as JAX gives each the GPU with its own number.
        cpus_per_task: of each process.
        memory_gb: of each node.
        max_parallel: runs at a time.
        account: that pays.
        qos: quality of service.
        constraint: on the nodes.
        extra: other options of sbatch by their long names; True for one without a value.
        setup: lines of bash before the run, such as `module load cuda`.
        signal_delay_s: seconds before the limit at which a run is told to save: more than a step, a validation and a
            checkpoint take.
        max_requeues: times that a run is queued again, after preemptions and limits together.
        retries: times that a failed run is started again.
        poll_s: seconds between looks at the queue.
        wait_min: longest wait for the runs, in minutes; None waits until the last has ended.

    Raises:
        ValueError: numbers that do not fit each other.
    """

    timeout_min: int
    partition: str | None = None
    tasks: int = 1
    nodes: int = 1
    gpus_per_task: int = 0
    cpus_per_task: int = 1
    memory_gb: float | None = None
    max_parallel: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)
    setup: Sequence[str] = ()
    signal_delay_s: int = 120
    max_requeues: int = 50
    retries: int = 0
    poll_s: float = 10.0
    wait_min: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no job can have."""
        counts = ("timeout_min", "tasks", "nodes", "cpus_per_task", "signal_delay_s")
        problems = [f"{name} is {getattr(self, name)}, wanted at least 1" for name in counts if getattr(self, name) < 1]
        if self.nodes > 0 and self.tasks % self.nodes:
            problems.append(f"{self.tasks} tasks cannot be spread evenly over {self.nodes} nodes")
        if self.max_parallel is not None and self.max_parallel < 1:
            problems.append(f"max_parallel is {self.max_parallel}, wanted at least 1, or None for as many as fit")
        if self.tasks > 1 and self.gpus_per_task > 1:
            problems.append(
                f"gpus_per_task is {self.gpus_per_task} for {self.tasks} tasks, and JAX gives each of several "
                f"processes one GPU; wanted gpus_per_task=1 and tasks={self.tasks * self.gpus_per_task}"
            )
        if self.timeout_min * 60 <= self.signal_delay_s:
            problems.append(
                f"a run would be told to save {self.signal_delay_s} s before a limit of {self.timeout_min} min, which "
                "is at its start; raise timeout_min, or lower signal_delay_s"
            )
        if problems:
            raise ValueError(f"SLURM job: {'; '.join(problems)}")


def parameters(slurm: Slurm, name: str, num_runs: int) -> dict[str, Any]:
    """Return what submitit's SlurmExecutor takes for an array of runs."""
    tasks_per_node = slurm.tasks // slurm.nodes
    given = {
        "job_name": name,
        "time": slurm.timeout_min,
        "nodes": slurm.nodes,
        "ntasks_per_node": tasks_per_node,
        "cpus_per_task": slurm.cpus_per_task,
        # Not gpus_per_task, which hides from each task the GPUs of the others: JAX counts them all, and takes its own.
        "gpus_per_node": tasks_per_node * slurm.gpus_per_task or None,
        "mem": None if slurm.memory_gb is None else f"{round(slurm.memory_gb * 1024)}M",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "array_parallelism": slurm.max_parallel or num_runs,
        "setup": list(slurm.setup) or None,
        "stderr_to_stdout": True,
        # SIGTERM in place of submitit's SIGUSR2, so that limits, preemption and `scancel --signal=TERM` are one thing.
        "additional_parameters": {"signal": f"TERM@{slurm.signal_delay_s}", "requeue": True, **slurm.extra},
    }
    return {key: value for key, value in given.items() if value is not None}


def run_all(
    runs: Sequence[Run], slurm: Slurm, find: Find, folder: Path, *, wait: bool, ended: Ended | None = None
) -> list[Outcome]:
    """Submit the runs that SLURM does not have yet; wait for all, or say how far they are.

    Args:
        runs: not finished.
        slurm: what each job gets.
        find: see `launch`.
        folder: for what belongs to no run alone.
        wait: for the runs to end.
        ended: see `launch`.

    Raises:
        ImportError: submitit is missing.
        OSError: SLURM does not answer; jobs that it has go on.
        ValueError: SLURM refuses the job, or another launcher is submitting.
    """
    with rundir.only_process(folder):
        queue = read_queue_patiently()
        fresh = [run for run in runs if queued(run, queue) is None]
        if len(fresh) < len(runs):
            log.info("%d runs are with SLURM already", len(runs) - len(fresh))
        if fresh:
            _submit(fresh, slurm, folder)

    def submit_again(failed: Sequence[Run]) -> None:
        with rundir.only_process(folder):
            _submit(failed, slurm, folder)

    longest = math.inf if slurm.wait_min is None else slurm.wait_min
    wait_min = longest if wait else 0.0
    patience = Patience(poll_s=slurm.poll_s, wait_min=wait_min, retries=slurm.retries)
    return follow(runs, find, submit_again, patience, ended)


def _submit(runs: Sequence[Run], slurm: Slurm, folder: Path) -> None:
    """Send runs to SLURM as one array.

    Each knows the name of the array and its place in it before SLURM does: a launcher that is killed here, at any
    moment, finds them again by that.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise ImportError("runs go to SLURM through submitit: pip install 'tljax[cluster]'") from error
    name = f"{runs[0].task}-{uuid.uuid4().hex[:8]}"
    arguments = [prepare(run) for run in runs]
    for index, run in enumerate(runs):
        (run.folder / ENDED).unlink(missing_ok=True)
        rundir.write_json(run.folder / JOB, {"name": name, "index": index})
    folders = [str(run.folder.absolute()) for run in runs]
    try:
        executor = submitit.SlurmExecutor(folder / SUBMITIT)
        executor.update_parameters(**parameters(slurm, name, len(runs)))
        jobs = executor.map_array(run_job, arguments, folders, [slurm.max_requeues] * len(runs))
    except (FailedJobError, RuntimeError) as error:
        raise ValueError(f"SLURM has not taken the job: {error}") from error
    log.info("submitted %d runs as job %s, named %s", len(runs), jobs[0].job_id.partition("_")[0], name)
