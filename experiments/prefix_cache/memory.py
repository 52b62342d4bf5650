"""What a process holds in memory while it trains from a store of 10 GB.

    python experiments/prefix_cache/memory.py           # ten minutes on two busy CPU cores, and 10 GB of disk

The store holds random numbers in the shape of what block 10 of a ViT-S/14 reads at 224 px, and goes on where it was
stopped. After the training steps batches are read without a step, so that most of the store is asked for. The memory is
what Linux counts as resident for the process, sampled 50 times a second: anonymous (its own) and file (pages of mapped
files, its libraries among them). Pages that Linux keeps of files that were read belong to no process, and do not count.
"""

import argparse
import csv
import dataclasses
import functools
import re
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tljax import rundir
from tljax.devices import make_mesh, replicate
from tljax.features import prefix_batches
from tljax.features import store as store_module
from tljax.features.store import FeatureStore, open_store
from tljax.features.writing import open_for_writing
from tljax.finetune import Fixed, Forward, init_state, make_groups, make_optimizer, make_train_step, train_body
from tljax.models import Net, architecture
from tljax.paths import stage_of
from tljax.preprocess import Preprocess

HERE = Path(__file__).parent
STORE = Path("runs/prefix_cache/large")
FREEZE, BATCH_SIZE, NUM_STEPS, NUM_READS = "block_10", 16, 30, 1500
ROW, NUM_BYTES = (257, 384), 10 * 10**9
COLUMNS = ("pages", "store_gb", "steps", "batches_read", "start_mb", "peak_mb", "peak_anonymous_mb", "peak_file_mb")
_FIELDS = {"peak_mb": "VmRSS", "peak_anonymous_mb": "RssAnon", "peak_file_mb": "RssFile"}


def write_store() -> FeatureStore:
    """Fill a store with random numbers, a shard after the other."""
    num_rows = NUM_BYTES // (2 * ROW[0] * ROW[1])
    arrays = {"block_09": jax.ShapeDtypeStruct(ROW, jnp.float16)}
    with open_for_writing(STORE, {"views": 1}, num_rows=num_rows, rows_per_batch=32, arrays=arrays) as store:
        for shard in store.missing_shards():
            rng = np.random.default_rng(shard)
            store.write(shard, {"block_09": rng.random((store.shard_rows(shard), *ROW), np.float32) - 0.5})
    return open_store(STORE)


class Memory:
    """The largest resident sizes so far, sampled in the background."""

    def __init__(self) -> None:
        self.peaks = dict.fromkeys(_FIELDS, 0.0)
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> dict[str, float]:
        """Return the sizes in MB (10^6 bytes)."""
        status = Path("/proc/self/status").read_text()
        found = {name: re.search(rf"{field}:\s+(\d+) kB", status) for name, field in _FIELDS.items()}
        return {name: int(match[1]) * 1024 / 1e6 for name, match in found.items() if match}

    def _watch(self) -> None:
        while not self.stopped.wait(0.02):
            for name, size in self.now().items():
                self.peaks[name] = max(self.peaks[name], size)


def train(pages: str) -> dict[str, object]:
    """Take the steps and read the batches, and return a row."""
    if pages == "kept":
        store_module.RESIDENT_BYTES = 2**62
    net = Net(dataclasses.replace(architecture("dinov2_vits14"), num_classes=2))
    params, stats = jax.jit(net.init)(jax.random.key(0))
    groups = make_groups(params, net.stages, freeze=FREEZE, rates={"body": 0.1})
    tx = make_optimizer(groups, lambda step: 1e-4, name="adamw", weight_decay=0.05, clip_norm=1.0)
    forward = Forward(net=net, training=groups.trained_stages, start=FREEZE)
    body = functools.partial(train_body, forward=forward, tx=tx, preprocess=Preprocess(size=224))
    trained, frozen = groups.split(params)
    running = {path: value for path, value in frozen.items() if net.depth(stage_of(path)) >= net.depth(FREEZE)}
    mesh = make_mesh(jax.devices())
    state, fixed = replicate((init_state(trained, stats, tx), Fixed(params=running)), mesh)
    step = make_train_step(body, mesh)
    store = open_store(STORE)
    labels = (np.arange(store.num_rows) % net.num_classes).astype(np.int32)
    memory = Memory()
    start = memory.now()["peak_mb"]
    stream = prefix_batches(store, np.arange(store.num_rows), labels, BATCH_SIZE, seed=0)
    for number, batch in enumerate(islice(stream, NUM_STEPS)):
        state, metrics = step(state, fixed, batch)
        print(f"{pages} step {number}: loss {float(metrics['loss']):.3f}", memory.now(), flush=True)
    for _ in islice(stream, NUM_READS):
        pass
    memory.stopped.set()
    print(f"{pages} end", memory.now(), flush=True)
    return {
        "pages": pages,
        "store_gb": round(store.num_bytes / 1e9, 2),
        "steps": NUM_STEPS,
        "batches_read": NUM_STEPS + NUM_READS,
        "start_mb": round(start),
        **{name: round(size) for name, size in memory.peaks.items()},
    }


def main() -> None:
    """Measure each way of holding pages in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", choices=("given back", "kept"))
    pages = parser.parse_args().pages
    path = HERE / "memory.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    if pages is None:
        write_store()
        for way in ("given back", "kept"):
            if not any(row["pages"] == way for row in rows):
                subprocess.run([sys.executable, __file__, f"--pages={way}"], check=True)
        print(path.read_text())
        return
    rows.append(train(pages))
    text = [",".join(COLUMNS), *(",".join(str(row[column]) for column in COLUMNS) for row in rows)]
    rundir.write_bytes(path, ("\n".join(text) + "\n").encode())


if __name__ == "__main__":
    main()
