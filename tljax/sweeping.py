"""The command `tljax sweep`: a study, planned or run."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from tljax.ablation.grid import Study
from tljax.ablation.runs import DONE, FAILED
from tljax.arguments import change_config, explain, make_flags
from tljax.launching import UNFINISHED, place_kinds, place_of, until_told
from tljax.tasks.studies import StudyRuns, count_progress, plan_runs, run_study
from tljax.tasks.study_costs import describe_costs
from tljax.tasks.study_results import cells_table, failures, write_results


def sweep(arguments: Sequence[str]) -> int:
    """Run a study: tljax sweep FILE [--workdir=DIR] [--plan] [--runs=DIR] [--retry_failed] [--config.a.b=value] ...

    FILE is a Python file with get_study(), which returns a tljax.ablation.grid.Study. Its runs are in DIR/runs, by
    default that of runs/SLUG; runs that are finished are left alone, half-finished ones go on: give the same command
    again after whatever has ended it. --plan says what there is to do and what it may cost, and starts nothing.

    A run that fails is recorded, with the end of what it printed, and the others go on. It is not started again but by
    --retry_failed, which starts the failed runs alone. --runs=DIR keeps the runs in a folder that several studies
    share: a run that two of them have is done once. --config.a.b=value changes the config that all runs begin with.

    --on=local     [--max_parallel=N] and other flags of `tljax launch`, which is the default
    --on=slurm     --timeout_min=M and other flags of `tljax launch`; --nowait leaves when all is submitted

    Ends with a table of the cells, and DIR/results.csv. The exit status is 0 where all runs are done, 1 where some are
    not, 85 where SIGTERM has ended the runs.
    """
    values = make_flags(
        workdir=str, on=str, plan=bool, runs=str, retry_failed=bool, wait=bool, **place_kinds()
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
    planned = plan_runs(study, workdir, values.runs)
    if values.plan:
        print(describe_plan(planned))
        return 0

    def work() -> int:
        run_study(planned, workdir, where, retry_failed=bool(values.retry_failed), wait=values.wait is not False)
        return _conclude(planned, workdir)

    return until_told(work)


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


def describe_plan(planned: StudyRuns) -> str:
    """Say what there is to do, and what it may cost."""
    study, counts = planned.study, count_progress(planned)
    places = len(planned.cells) * len(study.seeds)
    doubles = f", {places - len(planned.runs)} of them the same as others" if places > len(planned.runs) else ""
    lines = [
        f"{study.slug}: {study.title}",
        study.question,
        f"runs     {len(planned.runs)}: {len(planned.cells)} cells x {len(study.seeds)} seeds{doubles}",
        f"now      {', '.join(f'{count} {name}' for name, count in counts.items())}",
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
