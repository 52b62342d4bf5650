"""What scores of features would choose, and what fine-tuning chooses: see README.md.

    python experiments/logme_choice/run.py

Runs the sweep, scores the features of each candidate with the images that each seed may train and validate on, and
writes and prints the results. Give the same command again after whatever has ended it.
"""

import argparse
import csv
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import spearmanr

from tljax import rundir
from tljax.ablation.comparison import as_family, compare
from tljax.ablation.intervals import summarise
from tljax.ablation.local_pool import LocalPool
from tljax.sweeping import load_study
from tljax.tasks import select
from tljax.tasks.studies import StudyRuns, plan_runs, run_study

HERE = Path(__file__).parent
CANDIDATES = runpy.run_path(str(HERE / "sweep.py"))["CANDIDATES"]
SCORES = ("logme", "h_score", "ridge", "knn")
PROBE, FINETUNED = "probe", "val_accuracy"
METRICS = ("val_accuracy", "accuracy", "roc_auc")
# In the order of what they cost.
CHOOSERS = (*SCORES, PROBE, FINETUNED)
COLUMNS = ("candidate", "seed", *SCORES, PROBE, *METRICS, "train_tflops")
Row = dict[str, Any]


def main() -> None:
    """Run what is left, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/logme_choice"))
    parser.add_argument("--max_parallel", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    planned = plan_runs(load_study(str(HERE / "sweep.py")), arguments.workdir)
    outcomes = run_study(planned, arguments.workdir, LocalPool(max_parallel=arguments.max_parallel))
    if any(outcome.state != "done" for outcome in outcomes):
        sys.exit("some runs are not done; `tljax report` on the directory says which")
    rows = [row for seed in planned.study.seeds for row in rows_of(planned, seed, arguments.workdir / "selections")]
    with open(HERE / "results.csv", "w", newline="") as file:
        writer: Any = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print_means(rows)
    print_correlations(rows, planned.study.seeds)
    print_choices(rows, planned.study.seeds)


def rows_of(planned: StudyRuns, seed: int, selections: Path) -> list[Row]:
    """Return a row for each candidate: its scores by the images of one seed, and what fine-tuning gave."""
    base = planned.study.base()
    config = {name: base[name] for name in ("cache_dir", "data", "split")} | {
        "seed": seed,
        "candidates": [
            {"model": {"name": name, "image_size": size}, "taps": (tap,), "pooling": pooling, "label": title}
            for title, (name, size, _, tap, pooling) in CANDIDATES.items()
        ],
        "select": {
            "scores": SCORES, "num_folds": 5, "strengths": tuple(10.0**exponent for exponent in range(1, -5, -1)),
            "neighbours": 10, "dtype": "float32", "batch_size": 32,
        },
    }  # fmt: skip
    select.run(config, selections / str(seed))
    scored = rundir.read_json(selections / str(seed) / "select.json")["candidates"]
    found = []
    for cell, place, one in zip(planned.cells, planned.places, scored, strict=True):
        assert one["model"] == cell["candidate"]
        folder = Path(planned.runs[place[seed]].workdir)
        done = rundir.read_json(folder / rundir.DONE)
        validation = [row for row in rundir.read_metrics(folder / rundir.METRICS) if FINETUNED in row][-1]
        known = {**done, FINETUNED: validation[FINETUNED], **one["scores"], PROBE: one["mean"]}
        found.append({"candidate": cell["candidate"], "seed": seed, **{name: known[name] for name in COLUMNS[2:]}})
    return found


def print_means(rows: Sequence[Row]) -> None:
    """Print means over seeds, with the intervals of what fine-tuning gives on test cells."""
    print(f"| candidate | {' | '.join((*SCORES, PROBE))} | accuracy | ROC AUC | TFLOPs | n |")
    print("|---" * (len(SCORES) + 6) + "|")
    for candidate in CANDIDATES:
        own = [row for row in rows if row["candidate"] == candidate]
        scores = [f"{mean(row[name] for row in own):.3f}" for name in (*SCORES, PROBE)]
        cells = [_interval([row[name] for row in own]) for name in ("accuracy", "roc_auc")]
        cost = f"{mean(row['train_tflops'] for row in own):.2f}"
        print(f"| {candidate} | {' | '.join([*scores, *cells, cost])} | {len(own)} |")


def print_correlations(rows: Sequence[Row], seeds: Sequence[int]) -> None:
    """Print how each score orders the candidates, against the accuracy of test cells after fine-tuning, by seed."""
    print("\n| score | Spearman's correlation with test accuracy | with test ROC AUC |\n|---|---|---|")
    for name in CHOOSERS:
        cells = []
        for metric in ("accuracy", "roc_auc"):
            own = [[row for row in rows if row["seed"] == seed] for seed in seeds]
            found = [spearmanr([row[name] for row in some], [row[metric] for row in some]) for some in own]
            cells.append(_interval([float(one[0]) for one in found]))
        print(f"| {name} | {' | '.join(cells)} |")


def print_choices(rows: Sequence[Row], seeds: Sequence[int]) -> None:
    """Print what each score chooses, and what that gives less than the choice by fine-tuning all candidates."""
    chosen = {name: {seed: _chosen(rows, seed, name) for seed in seeds} for name in CHOOSERS}
    values = {name: {(seed,): row["accuracy"] for seed, row in by.items()} for name, by in chosen.items()}
    others = CHOOSERS[:-1]
    family = as_family([compare(values[name], values[FINETUNED]) for name in others])
    print("\n| chosen by | chosen | test accuracy | less that of the choice by validation | p | p, Holm |")
    print("|---" * 6 + "|")
    for name, one in zip(CHOOSERS, (*family, None), strict=True):
        counts = {title: sum(row["candidate"] == title for row in chosen[name].values()) for title in CANDIDATES}
        said = "; ".join(f"{title}: {count}" for title, count in counts.items() if count)
        cells = [name, said, _interval(list(values[name].values())), "", "", ""]
        if one is not None:
            gain = one.difference
            interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            cells[3:] = [interval, f"{one.permutation.p:.3f}", f"{one.adjusted_p:.3f}"]
        print(f"| {' | '.join(cells)} |")
    any_one = [mean(row["accuracy"] for row in rows if row["seed"] == seed) for seed in seeds]
    print(f"\nany candidate, as drawn by lot: {_interval(any_one)}")


def _chosen(rows: Sequence[Row], seed: int, name: str) -> Row:
    """Return the candidate with the highest score; of equal ones the first."""
    return max((row for row in rows if row["seed"] == seed), key=lambda row: row[name])


def _interval(values: Sequence[float]) -> str:
    found = summarise(list(values))
    assert found is not None
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    main()
