"""LP, FT, LP-FT and WiSE-FT under shift: see README.md.

    python experiments/shift/run.py

Runs the sweep, then walks from each linear probe to the run of its seed that was fine-tuned from there (WiSE-FT), to
the share of the second that is best on validation images, and to 1/2. Give the same command again after whatever has
ended it.
"""

import argparse
import csv
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.ablation.comparison import as_family, compare
from tljax.ablation.intervals import summarise
from tljax.ablation.local_pool import LocalPool
from tljax.sweeping import load_study
from tljax.tasks import soup
from tljax.tasks.studies import StudyRuns, plan_runs, run_study

HERE = Path(__file__).parent
SHARES = {"WiSE-FT, chosen": (0.0, 0.25, 0.5, 0.75, 1.0), "WiSE-FT, 1/2": (0.5,)}
METRICS = ("val_accuracy", "accuracy", "balanced_accuracy", "roc_auc")
COLUMNS = ("trained on", "method", "seed", *METRICS, "share of LP-FT")
Row = dict[str, Any]


def main() -> None:
    """Run what is left, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/shift"))
    parser.add_argument("--max_parallel", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    planned = plan_runs(load_study(str(HERE / "sweep.py")), arguments.workdir)
    outcomes = run_study(planned, arguments.workdir, LocalPool(max_parallel=arguments.max_parallel))
    if any(outcome.state != "done" for outcome in outcomes):
        sys.exit("some runs are not done; `tljax report` on the directory says which")
    rows = [row for kind in ("mono", "poly") for row in rows_of(planned, kind, arguments.workdir / "soups")]
    with open(HERE / "results.csv", "w", newline="") as file:
        writer: Any = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print_means(rows)
    for metric in ("accuracy", "roc_auc"):
        print_pairs(rows, metric)


def rows_of(planned: StudyRuns, kind: str, soups: Path) -> list[Row]:
    """Return a row for each method and seed of one type of cells, soups among them."""
    places = {cell["method"]: place for cell, place in zip(planned.cells, planned.places, strict=True)
              if cell["trained on"] == kind}  # fmt: skip
    rows = []
    for seed in planned.study.seeds:
        runs = {method: planned.runs[place[seed]] for method, place in places.items()}
        for method, run in runs.items():
            folder = Path(run.workdir)
            found = {**_last_validation(folder), **rundir.read_json(folder / rundir.DONE)}
            rows.append(_row(kind, method, seed, found))
        ends = [str(runs[method].workdir) for method in ("LP", "LP-FT")]
        for number, (method, alphas) in enumerate(SHARES.items()):
            section = {"runs": ends, "kind": "path", "batch_size": 32, "alphas": alphas}
            folder = soups / f"{kind}_{seed}_{number}"
            found = soup.run({**runs["LP"].config, "soup": section}, folder)
            share = float(rundir.read_json(folder / "soup.json")["chosen"])
            rows.append({**_row(kind, method, seed, found), "share of LP-FT": share})
    return rows


def _row(kind: str, method: str, seed: int, found: Mapping[str, Any]) -> Row:
    return {"trained on": kind, "method": method, "seed": seed, **{name: found[name] for name in METRICS}}


def _last_validation(folder: Path) -> Row:
    return [row for row in rundir.read_metrics(folder / rundir.METRICS) if "val_accuracy" in row][-1]


def _values(rows: list[Row], kind: str, method: str, metric: str) -> dict[tuple[int, ...], float]:
    return {(row["seed"],): row[metric] for row in rows if (row["trained on"], row["method"]) == (kind, method)}


def print_means(rows: list[Row]) -> None:
    """Print the means with their intervals."""
    print("| trained on | method | same type, accuracy | other type, accuracy | other type, ROC AUC | n |")
    print("|---" * 6 + "|")
    for kind, method in dict.fromkeys((row["trained on"], row["method"]) for row in rows):
        names = ("val_accuracy", "accuracy", "roc_auc")
        found = [summarise(list(_values(rows, kind, method, name).values())) for name in names]
        cells = [f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in found if one is not None]
        print(f"| {kind} | {method} | {' | '.join(cells)} | {found[0].n if found[0] else 0} |")


def print_pairs(rows: list[Row], metric: str) -> None:
    """Print what each method has more than fine-tuning at once on the other type; a family for each type."""
    print(f"\n| trained on | method | {metric} of the other type, less that of FT | pairs | p | p, Holm |")
    print("|---" * 6 + "|")
    for kind in dict.fromkeys(row["trained on"] for row in rows):
        methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != "FT"]
        base = _values(rows, kind, "FT", metric)
        found = as_family([compare(_values(rows, kind, method, metric), base) for method in methods])
        for method, one in zip(methods, found, strict=True):
            assert one is not None
            gain = one.difference
            interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            print(f"| {kind} | {method} | {interval} | {gain.n} | {one.permutation.p:.3f} | {one.adjusted_p:.3f} |")


if __name__ == "__main__":
    main()
