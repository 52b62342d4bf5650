"""The command `tljax launch`: one run or many, on this machine or a cluster."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from absl import flags

from tljax import preemption, processes
from tljax.ablation.launch import Where
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, FAILED, Outcome, Run, log_tail, name_of
from tljax.ablation.slurm import Slurm
from tljax.arguments import make_flags, parse_config
from tljax.paths import did_you_mean
from tljax.tasks.launching import launch_tasks, runs_of_seeds

# Of the shell, after Ctrl-C.
INTERRUPTED = 130
# Exit status where a run is not done.
UNFINISHED = 1
_PLACES: dict[str, type[LocalPool] | type[Slurm]] = {"local": LocalPool, "slurm": Slurm}

log = logging.getLogger(__name__)


def launch(arguments: Sequence[str]) -> int:
    """Run a task: tljax launch TASK --config=FILE --workdir=DIR --on=local|slurm [--seeds=0-7] ...

    With --seeds=0-7 or --seeds=0,3,5 there is one run a seed, in DIR/seed_0 and so on. Runs that are finished are left
    alone, and those that SLURM has already are found: give the same command again after whatever has ended it.

    --on=local     [--max_parallel=N] [--gpus_per_run=N] [--retries=N] [--max_requeues=N] [--stop_s=S]
    --on=slurm     --timeout_min=M [--partition=P] [--tasks=N] [--nodes=N] [--gpus_per_task=N] [--cpus_per_task=N]
                   [--memory_gb=G] [--max_parallel=N] [--account=A] [--qos=Q] [--constraint=C] [--extra=OPTION=VALUE]
                   [--setup=LINE] [--signal_delay_s=S] [--max_requeues=N] [--retries=N] [--poll_s=S] [--wait_min=M]
                   [--nowait]

    --tasks are processes that train one run together. --extra and --setup, which may be given again and again, are
    options of sbatch and lines of bash before the run. --nowait leaves when all is submitted. See docs/cluster.md.

    The exit status is 0 where all runs are done, 1 where some are not, 85 where SIGTERM has ended the runs.
    """
    if len(arguments) < 2 or arguments[1].startswith("-"):
        raise ValueError("wanted a TASK first: tljax launch TASK --config=FILE --workdir=DIR --on=local|slurm")
    task = arguments[1]
    values = make_flags(workdir=str, on=str, seeds=str, wait=bool, **place_kinds())
    rest = values([f"launch {task}", *arguments[2:]], known_only=True)
    missing = [f"--{name}" for name in ("workdir", "on") if values[name].value is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; `tljax launch --help` says more")
    where = place_of(values.on, values)
    run = Run(task=task, config=parse_config(rest), workdir=values.workdir)
    runs = [run] if values.seeds is None else runs_of_seeds(run, parse_seeds(values.seeds))

    def work() -> int:
        outcomes = launch_tasks(runs, where, wait=values.wait is not False)
        print(table(outcomes))
        return 0 if all(outcome.state == DONE for outcome in outcomes) else UNFINISHED

    return until_told(work)


def until_told(work: Callable[[], int]) -> int:
    """Do what starts runs and returns an exit status, or return that of what has told this process to end."""
    try:
        with preemption.ending_at_once():
            return work()
    except processes.Preempted as error:
        log.warning("%s", error)
        return processes.REQUEUE
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on. Jobs that SLURM has do not stop; scancel ends them")
        return INTERRUPTED


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "0-3" or "0,5,7", or of both joined by commas.

    Raises:
        ValueError: the text is no such list, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            raise ValueError(f"--seeds={text} is no list of seeds, such as 0-7 or 0,3,5")
        first, last = int(found[1]), int(found[2] or found[1])
        seeds.extend(range(first, last + 1))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={text} names {'a seed twice' if seeds else 'none'}")
    return seeds


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one line for each run, and what each failed one has printed last."""
    runs = [outcome.run for outcome in outcomes]
    names = [name_of(run, runs) for run in runs]
    width = max(len(name) for name in names)
    lines = [
        f"{name:<{width}}  {outcome.state:<9}  {outcome.detail}".rstrip()
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.state == FAILED and outcome.log is not None:
            tail = log_tail(outcome.log).replace("\n", "\n    ")
            lines.append(f"\n{name}: the end of {outcome.log}\n    {tail or '(nothing printed)'}")
    return "\n".join(lines)


def place_kinds() -> dict[str, type]:
    """Return the kinds of the flags that are the fields of the places, beside `--on`, which names one."""
    return {name: kind for place in _PLACES.values() for name, kind in _flags_of(place).items()}


def place_of(name: str, values: flags.FlagValues) -> Where:
    """Return where to run, of `--on` and the flags of `place_kinds`.

    Raises:
        ValueError: there is no such place, or flags are not for it or missing.
    """
    return _place(name, {flag: values[flag].value for flag in place_kinds() if values[flag].value is not None})


def _flags_of(place: type[LocalPool] | type[Slurm]) -> dict[str, type]:
    """Return the kinds of the flags that the fields of a place are."""
    hints = get_type_hints(place)
    single = {hint: kind for kind in (float, int, str) for hint in (kind, kind | None)}
    return {each.name: single.get(hints[each.name], list) for each in fields(place)}


def _place(name: str, given: dict[str, Any]) -> Where:
    """Return where to run.

    Raises:
        ValueError: there is no such place, or flags are not for it or missing.
    """
    if name not in _PLACES:
        raise ValueError(f"--on={name}, wanted local or slurm{did_you_mean(name, _PLACES)}")
    place = _PLACES[name]
    known = {each.name for each in fields(place)}
    needed = {each.name for each in fields(place) if each.default is MISSING and each.default_factory is MISSING}
    problems = [f"--{flag} is not for --on={name}{did_you_mean(flag, known)}" for flag in given if flag not in known]
    problems += [f"--{flag} is missing" for flag in sorted(needed - set(given))]
    if problems:
        raise ValueError(f"{'; '.join(problems)}; `tljax launch --help` says more")
    if "extra" in given:
        given = {**given, "extra": dict(map(_option, given["extra"]))}
    return place(**given)


def _option(text: str) -> tuple[str, str | bool]:
    """Read an option of sbatch, which may have a value."""
    name, equals, value = text.removeprefix("--").partition("=")
    return name, value if equals else True
