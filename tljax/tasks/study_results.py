"""What came out of a study: a row for each cell and seed, and a line for each cell."""

import csv
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.tasks.launching import find_results
from tljax.tasks.studies import StudyRuns

# In the directory of a study.
RESULTS = "results.csv"
# What depends on the machine and its load, or on what other runs have left in the cache.
_NOT_RESULTS = ("seconds", "share_reused")


def write_results(planned: StudyRuns, workdir: str | os.PathLike) -> Path:
    """Write the finished runs as CSV: factors, seed, run, and the results of the run, to their last digit."""
    rows = []
    for cell, place in zip(planned.cells, planned.places, strict=True):
        for seed, name in place.items():
            found = find_results(planned.runs[name])
            if found is not None:
                rows.append(({**cell, "seed": seed, "run": name}, _results(found)))
    names = sorted({metric for _, metrics in rows for metric in metrics})
    # The metric of the study first.
    names.sort(key=lambda metric: metric != planned.study.metric)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*planned.study.factors, "seed", "run", *names])
    for place, metrics in rows:
        writer.writerow([*place.values(), *(metrics.get(metric) for metric in names)])
    path = Path(workdir) / RESULTS
    rundir.write_bytes(path, buffer.getvalue().encode())
    return path


def _results(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in _NOT_RESULTS}


def cells_table(planned: StudyRuns) -> str:
    """Return a line for each cell: its values, the mean of the metric, its sd, and of how many seeds.

    Raises:
        ValueError: a finished run has no such metric.
    """
    study = planned.study
    rows: list[Sequence[str]] = [(*study.factors, study.metric, "sd", "n")]
    for cell, place in zip(planned.cells, planned.places, strict=True):
        values = [found[study.metric] for name in place.values() if (found := _checked(planned, name)) is not None]
        mean = f"{statistics.fmean(values):.4f}" if values else "-"
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        rows.append((*map(str, cell.values()), mean, sd, f"{len(values)}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    num_factors = len(study.factors)
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < num_factors else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _checked(planned: StudyRuns, name: str) -> dict[str, float] | None:
    run, metric = planned.runs[name], planned.study.metric
    found = find_results(run)
    if found is not None and metric not in found:
        raise ValueError(f"{run.workdir} has no {metric!r} in its results; it has {', '.join(sorted(found))}")
    return found


def failures(planned: StudyRuns) -> list[tuple[Path, str]]:
    """Return the directories of the runs that have failed, with the last line of their errors."""
    found = []
    for run in planned.runs.values():
        path = Path(run.workdir) / rundir.ERROR
        if path.exists() and find_results(run) is None:
            lines = str(rundir.read_json(path)["error"]).splitlines()
            found.append((Path(run.workdir), next((line for line in lines if line.startswith("tljax: ")), lines[-1])))
    return found
