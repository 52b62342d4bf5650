"""Runs of tasks for the launcher, which knows neither tasks nor what their configs mean."""

from collections.abc import Callable, Sequence

from tljax import rundir
from tljax.ablation.launch import Where, launch
from tljax.ablation.runs import Outcome, Run
from tljax.ablation.slurm import Slurm
from tljax.tasks import TASKS, WITH_PARTS, WITHOUT_WORKDIR
from tljax.tasks.execution import identity_of
from tljax.tasks.running import SEVERAL
from tljax.tasks.sections import select


def launch_tasks(
    runs: Sequence[Run], where: Where, *, wait: bool = True, ended: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Start the runs that are not finished, and say how far all are; see `ablation.launch.launch`.

    Raises:
        ValueError: a config lacks what its task needs, or has what no task knows, or a task is to run in several
            processes and cannot, beside what `launch` raises.
    """
    alone = sorted({run.task for run in runs} - set(SEVERAL))
    if isinstance(where, Slurm) and where.tasks > 1 and alone:
        raise ValueError(
            f"{where.tasks} tasks of SLURM would train together, and {' and '.join(alone)} runs in one process; "
            f"several take {' and '.join(SEVERAL)}"
        )
    return launch(runs, where, find=find_results, wait=wait, ended=ended)


def find_results(run: Run) -> dict[str, float] | None:
    """Return the results of a run if it is finished.

    Raises:
        ValueError: there is no such task, the config does not fit it, or the directory holds another run.
    """
    if run.task not in TASKS or run.task in WITHOUT_WORKDIR:
        known = sorted(set(TASKS) - set(WITHOUT_WORKDIR))
        raise ValueError(f"no task {run.task!r} that leaves results; wanted one of {', '.join(known)}")
    identity = identity_of(select(run.task, run.config))
    return rundir.find(run.workdir, run.task, identity, has_parts=run.task in WITH_PARTS)


def runs_of_seeds(run: Run, seeds: Sequence[int]) -> list[Run]:
    """Return a run for each seed, in folders of their own inside the workdir of the run."""
    config = dict(run.config)
    return [Run(task=run.task, config={**config, "seed": seed}, workdir=f"{run.workdir}/seed_{seed}") for seed in seeds]
