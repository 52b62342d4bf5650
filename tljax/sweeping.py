"""The command `tljax sweep`: a study, planned or run."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from tljax.ablation.grid import Study
from tljax.ablation.launch import Where
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, FAILED
from tljax.arguments import change_config, explain, make_flags
from tljax.launching import UNFINISHED, place_kinds, place_of, until_told
from tljax.tasks.studies import StudyRuns, count_progress, plan_runs, run_study, runs_left
from tljax.tasks.study_costs import describe_costs
from tljax.tasks.study_results import cells_table, failures, write_results
from tljax.tasks.together_jobs import NEVER, Together, describe_division, launch_together


def sweep(arguments: Sequence[str]) -> int:
    """Run a study: tljax sweep FILE [--workdir=DIR] [--plan] [--runs=DIR] [--retry_failed] [--config.a.b=value] ...

    FILE is a Python file with get_study(), which returns a tljax.ablation.grid.Study. Its runs are in DIR/runs, by
    default that of runs/SLUG; runs that are finished are left alone, half-finished ones go on: give the same command
    again after whatever has ended it. --plan says what there is to do and what it may cost, and starts nothing.

    A run that fails is recorded, with the end of what it printed, and the others go on. It is not started again but by
    --retry_failed, which starts the failed runs alone. --runs=DIR keeps the runs in a folder that several studies
    share: a run that two of them have is done once. --config.a.b=value changes the config that all runs begin with.

    --on=local     [--max_parallel=N] and other flags of `tljax launch`, which is the default
                   [--together=auto|never] [--together_gb=G]
    --on=slurm     --timeout_min=M and other flags of `tljax launch`; --nowait leaves when all is submitted

    On this machine fine-tuning runs that differ in seeds, rates, decays, label smoothing or strengths of penalties
    alone, and train from a stored prefix, are trained in one program; --together=never gives each a process of its own.
    G is what they may take of memory, in units of 10^9 bytes; as many as fit train side by side, the others after them.
    By default it is half of the memory of the device, or of the machine without one, divided by N where runs share it.

    Ends with a table of the cells, and DIR/results.csv. The exit status is 0 where all runs are done, 1 where some are
    not, 85 where SIGTERM has ended the runs.
    """
    values = make_flags(
        workdir=str, on=str, plan=bool, runs=str, retry_failed=bool, wait=bool, together=str, together_gb=float,
        **place_kinds(),
    )  # fmt: skip
    rest = values(list(arguments), known_only=True)
    files = [text for text in rest[1:] if not text.startswith("-")]
    if len(files) != 1:
        raise ValueError(f"wanted one FILE, got {' '.join(files) or 'none'}; `tljax sweep --help` says more")
    # Configs are checked and costs counted here, and the devices are for the runs.
    jax.config.update("jax_platforms", "cpu")
    study = load_study(files[0])
    study = replace(study, config=change_config(study.base(), [text for text in rest if text != files[0]]))
    workdir = Path(values.workdir or Path("runs", study.slug))
    where = place_of(values.on or "local", values)
    together = _together_of(where, {"choice": values.together, "budget_gb": values.together_gb})
    planned = plan_runs(study, workdir, values.runs)
    if values.plan:
        print(describe_plan(planned, together))
        return 0

    def work() -> int:
        run_study(
            planned, workdir, where, retry_failed=bool(values.retry_failed), wait=values.wait is not False,
            launcher=partial(launch_together, together=together),
        )  # fmt: skip
        return _conclude(planned, workdir)

    return until_told(work)


def _together_of(where: Where, given: dict[str, Any]) -> Together:
    """Return which runs train together there.

    Raises:
        ValueError: another choice, or flags that are not for this place.
    """
    chosen = Together(**{name: value for name, value in given.items() if value is not None})
    if isinstance(where, LocalPool):
        return chosen
    if given["choice"] not in (None, NEVER) or chosen.budget_gb is not None:
        raise ValueError("--together and --together_gb are for --on=local; on SLURM each run is a task of its own")
    return replace(chosen, choice=NEVER)


def load_study(file: str) -> Study:
    """Return what `get_study()` of a file returns.

    Raises:
        ValueError: there is no such file, it fails, or it returns something else.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no file {file}; wanted a Python file with get_study()")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        study = module.get_study()
    except Exception as error:
        # A study is a program, and fails in as many ways.
        raise ValueError(explain(error, [file])) from error
    if not isinstance(study, Study):
        raise ValueError(f"get_study() of {file} returns a {type(study).__name__}, wanted a tljax.ablation.grid.Study")
    return study


def describe_plan(planned: StudyRuns, together: Together) -> str:
    """Say what there is to do, how, and what it may cost."""
    study, counts = planned.study, count_progress(planned)
    places = len(planned.cells) * len(study.seeds)
    doubles = f", {places - len(planned.runs)} of them the same as others" if places > len(planned.runs) else ""
    lines = [
        f"{study.slug}: {study.title}",
        study.question,
        f"runs     {len(planned.runs)}: {len(planned.cells)} cells x {len(study.seeds)} seeds{doubles}",
        f"now      {', '.join(f'{count} {name}' for name, count in counts.items())}",
        *describe_division(runs_left(planned, retry_failed=False), together),
        *describe_costs(planned),
    ]
    return "\n".join(lines)


def _conclude(planned: StudyRuns, workdir: Path) -> int:
    counts = count_progress(planned)
    print(cells_table(planned))
    print(f"\n{', '.join(f'{count} {name}' for name, count in counts.items() if count)}")
    for path, message in failures(planned):
        print(f"failed: {path}: {message}")
    if counts[FAILED]:
        print("--retry_failed starts the failed runs again")
    print(f"results: {write_results(planned, workdir)}\nreport:  tljax report {workdir}")
    return 0 if counts[DONE] == len(planned.runs) else UNFINISHED
