"""Choose the rate of each method of sweep.py, by validation cells of three seeds that the study does not have.

    python experiments/equal_budget/pilot.py

Test cells are not looked at. Give the same command again after whatever has ended it.
"""

import logging
import runpy
import sys
from pathlib import Path
from statistics import mean

from tljax import rundir
from tljax.ablation.grid import Study
from tljax.ablation.local_pool import LocalPool
from tljax.tasks.studies import plan_runs, run_study

SWEEP = runpy.run_path(str(Path(__file__).with_name("sweep.py")))
# Three for each method, a factor of about three apart; what is added to a net takes higher ones.
RATES = {
    **dict.fromkeys(("fine-tuning", "L2-SP", "distillation", "BSS"), (3e-5, 1e-4, 3e-4)),
    **dict.fromkeys(("LoRA", "biases"), (3e-4, 1e-3, 3e-3)),
}
SEEDS = (100, 101, 102)
WORKDIR = Path("runs/equal_budget_pilot")


def main() -> None:
    """Run what is left, and print how validation cells are told apart with each method and rate."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    cells = {f"{method}, {rate:g}": (method, rate) for method, rates in RATES.items() for rate in rates}
    study = Study(
        slug="equal_budget_pilot",
        title="Rates for equal_budget",
        question="Which rate is best on validation cells?",
        task="finetune",
        config=SWEEP["get_config"](),
        factors={"method and rate": {name: SWEEP["fields"](*cell) for name, cell in cells.items()}},
        seeds=SEEDS,
        metric="accuracy",
    )
    planned = plan_runs(study, WORKDIR)
    outcomes = run_study(planned, WORKDIR, LocalPool(max_parallel=2))
    if any(outcome.state != "done" for outcome in outcomes):
        sys.exit("some runs are not done; `tljax report` on the directory says which")
    print("| method | rate | accuracy of validation cells, mean of 3 | ROC AUC |\n|---|---|---|---|")
    for cell, place in zip(planned.cells, planned.places, strict=True):
        method, rate = cells[cell["method and rate"]]
        rows = [_last_validation(Path(planned.runs[place[seed]].workdir)) for seed in SEEDS]
        accuracy, area = (mean(row[name] for row in rows) for name in ("val_accuracy", "val_roc_auc"))
        print(f"| {method} | {rate:g} | {accuracy:.3f} | {area:.3f} |")


def _last_validation(folder: Path) -> dict[str, float]:
    return [row for row in rundir.read_metrics(folder / rundir.METRICS) if "val_accuracy" in row][-1]


if __name__ == "__main__":
    main()
