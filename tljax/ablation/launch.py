"""Run many configs, each in its own directory: in a pool of processes on this machine, or as jobs of SLURM."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tljax import rundir
from tljax.ablation import local_pool, slurm
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, Find, Outcome, Run, unfinished
from tljax.ablation.slurm import Slurm

Where = LocalPool | Slurm


def launch(
    runs: Sequence[Run], where: Where, *, find: Find, wait: bool = True, ended: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Start the runs that are not finished, and say how far all are.

    The run directories are the only state. Whatever ends this function, or the machine that it runs on, call it again
    with the same runs: finished ones are not started again, jobs that SLURM has are found, the others go on where they
    were.

    Args:
        runs: each with a directory of its own.
        where: on this machine, or on a cluster.
        find: returns the results of a finished run, and None of any other.
        wait: until no run is left that waits or runs; False returns when all are submitted. A local pool ends with
            this function, so it cannot do without.
        ended: called with the outcome of each run that ends here, at once.

    Returns:
        One outcome for each run, in their order. A run that fails does not stop the others.

    Raises:
        ValueError: two runs share a directory, one of them holds another run, another launcher works on them, or the
            cluster has refused the job.
        ImportError: submitit is missing.
        OSError: SLURM does not answer.
    """
    if isinstance(where, LocalPool) and not wait:
        raise ValueError("a local pool ends with its launcher, so it has to wait; only jobs of SLURM go on without it")
    left = unfinished(runs, find)
    if not left:
        return _in_order(runs, [], find)
    folder = common_folder(runs)
    if isinstance(where, LocalPool):
        with rundir.only_process(folder):
            return _in_order(runs, local_pool.run_all(left, where, find, ended), find)
    return _in_order(runs, slurm.run_all(left, where, find, folder, wait=wait, ended=ended), find)


def common_folder(runs: Sequence[Run]) -> Path:
    """Return the folder for what belongs to no run alone, inside the one that holds all runs."""
    return Path(os.path.commonpath([Path(run.workdir).absolute() for run in runs]), rundir.LAUNCH)


def _in_order(runs: Sequence[Run], outcomes: Sequence[Outcome], find: Find) -> list[Outcome]:
    """Return the outcomes in the order of the runs, with those that were finished before."""
    known = {Path(outcome.run.workdir).absolute(): outcome for outcome in outcomes}
    found = []
    for run in runs:
        outcome = known.get(Path(run.workdir).absolute())
        if outcome is None:
            log = run.log() if run.log().exists() else None
            outcome = Outcome(run=run, state=DONE, results=find(run), log=log)
        found.append(outcome)
    return found
