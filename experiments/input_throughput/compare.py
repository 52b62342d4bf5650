"""How near the input is to what the cores can do, and to a torch DataLoader on the same files in the same run.

    python experiments/input_throughput/compare.py      # five minutes on two CPU cores; resumes by row and repeat

With a Python that has torch beside tljax the rows of torch are measured too: `pip install torch -e '.[demo,maps]'`.
Every row is a process of its own, and rows take turns, so that all have the same cores with the same other work on
them; the CPU time that a row takes for an image, over all of its processes, does not depend on that other work. All
decode the same JPEG files, crop at random (RandomResizedCrop's area of 0.08 to 1, bilinear, 224 px), mirror
half of the images and form batches of 64; nothing is trained.
"""

import argparse
import csv
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from tljax.ablation.stats import estimate
from tljax.data.augment import Augment
from tljax.data.decode import decode_image
from tljax.data.image_cache import CacheRoom
from tljax.data.pipeline import training_batches
from tljax.data.sample import Sample
from tljax.data.sources import open_folder, open_source
from tljax.data.worker import keep_freed_memory
from tljax.preprocess import Preprocess
from tljax.tasks.input_speeds import Work, decode_only, limit_rate, load_only

HERE = Path(__file__).parent
FOLDER = Path("runs/input_throughput")
NUM_IMAGES, BATCH_SIZE, NUM_WORKERS, SIZE = 2000, 64, 2, 224
# Batches that a pipeline may have ready before the clock starts.
SKIPPED_BATCHES = 9
LIMIT_IMAGES = 1000
WORK = Work(
    preprocess=Preprocess(size=SIZE, interpolation="bilinear"),
    augment=Augment(views=2, crop_scale=(0.08, 1.0)),
    batch_size=BATCH_SIZE,
)
SMALL = Augment(views=2, crop_scale=(0.08, 1.0), short_side=256)
FLIPS = Augment(views=2)
COLUMNS = ("repeat", "row", "images_per_s", "cpu_ms", "python", "torch")


def write_images(folder: Path) -> None:
    """Write JPEG files of about 500 x 375 pixels: of two photographs, and of solar cells side by side, in colour."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    cells = open_source("elpv", "runs/cache/data", task="binary")
    rng = np.random.default_rng(0)
    partial_folder = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial_folder, ignore_errors=True)
    for number in range(NUM_IMAGES):
        width, height = int(rng.normal(500, 30)), int(rng.normal(375, 25))
        if number % 2:
            rows = [[_cell(cells, rng) for _ in range(3)] for _ in range(2)]
            pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        else:
            pixels = _part(photographs[number // 2 % 2], rng)
        picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)) / 255
        # Light and colour of their own.
        picture = picture ** rng.uniform(0.8, 1.25) * rng.uniform(0.8, 1.2, 3)
        path = partial_folder / ("cells" if number % 2 else "photographs") / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(path, quality=90)
    partial_folder.rename(folder)


def _cell(cells: Any, rng: np.random.Generator) -> np.ndarray:
    return decode_image(cells[rng.integers(len(cells))]["image"], "a cell")[:190, :190]


def _part(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0.75, 1.0)
    height, width = (int(scale * side) for side in photograph.shape[:2])
    top, left = (rng.integers(whole - part + 1) for whole, part in zip(photograph.shape, (height, width), strict=False))
    pixels = photograph[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels[:, :: rng.choice((-1, 1))])


def cpu_s() -> float:
    """Return the CPU time of this process and all below it that are running."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def rate_of(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Return images a second of a stream of batches, when it is under way, and the CPU time of an image in ms."""
    for _ in range(SKIPPED_BATCHES):
        next(batches)
    started, cpu_before, count = time.perf_counter(), cpu_s(), 0
    for _ in batches:
        count += BATCH_SIZE
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return count / elapsed, 1000 * (cpu_s() - cpu_before) / count
    raise AssertionError("the stream has no end")


def limit(action: Callable[..., None], seconds: float, **given: Any) -> tuple[float, float]:
    """Measure what two processes do with no pipeline, and the CPU time in this one."""
    source = open_folder(FOLDER / "images")
    sample = Sample(source=source, indices=np.random.default_rng(0).permutation(len(source)))
    rate = limit_rate(partial(action, sample=sample, **given), len(sample), NUM_WORKERS, seconds)
    keep_freed_memory()
    before = time.process_time()
    for index in range(LIMIT_IMAGES):
        action(index, sample=sample, **given)
    return rate, 1000 * (time.process_time() - before) / LIMIT_IMAGES


def ours(
    seconds: float, *, augment: Augment = WORK.augment, num_workers: int = NUM_WORKERS, caches: bool = False
) -> tuple[float, float]:
    """Measure the pipeline of tljax; the cache is full when the clock starts."""
    source = open_folder(FOLDER / "images")
    room = CacheRoom(directory=FOLDER / "cache", budget_bytes=4 * 10**9) if caches else None

    def stream() -> Iterator[Any]:
        return training_batches(
            source, np.arange(len(source)), WORK.preprocess, BATCH_SIZE, 0, augment=augment, num_workers=num_workers,
            room=room,
        )  # fmt: skip

    batches = stream()
    if caches:
        for _ in range(-(-len(source) // BATCH_SIZE)):
            next(batches)
    return rate_of(batches, seconds)


def torchs(seconds: float, *, decode: str) -> tuple[float, float]:
    """Measure torch's DataLoader, with the same crop drawn and resized by the same Pillow."""
    from torch_loader import make_loader

    def endless() -> Iterator[Any]:
        loader = make_loader(FOLDER / "images", SIZE, BATCH_SIZE, NUM_WORKERS, decode=decode)
        while True:
            yield from loader

    return rate_of(endless(), seconds)


ROWS: dict[str, Callable[[float], tuple[float, float]]] = {
    "limit: decode alone": partial(limit, decode_only),
    "limit: decode, crop, mirror": partial(limit, load_only, work=WORK),
    "tljax": ours,
    "tljax, threads": partial(ours, num_workers=0),
    "torch, simplejpeg": partial(torchs, decode="simplejpeg"),
    "torch, Pillow": partial(torchs, decode="pillow"),
    "tljax, full cache": partial(ours, caches=True),
    "tljax, full cache of small images": partial(ours, augment=SMALL, caches=True),
    "tljax, full cache, mirror alone": partial(ours, augment=FLIPS, caches=True),
}


def main() -> None:
    """Measure the rows that are missing, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--row", choices=ROWS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(*ROWS[arguments.row](arguments.seconds))
        return
    if not (FOLDER / "images").exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_images(FOLDER / "images")
    has_torch = importlib.util.find_spec("torch") is not None
    rows = [row for row in ROWS if has_torch or not row.startswith("torch")]
    path = HERE / "results.csv"
    done = {(int(found["repeat"]), found["row"]) for found in read(path)}
    for repeat in range(arguments.repeats):
        # Each row is first, last and in the middle in turn.
        for row in [*rows[repeat % len(rows) :], *rows[: repeat % len(rows)]]:
            if (repeat, row) in done:
                continue
            rate, cpu_ms = measure(row, arguments.seconds)
            print(f"{repeat} {row:<34} {rate:8.0f} images/s, CPU {cpu_ms:.3f} ms an image", flush=True)
            figures = {"images_per_s": f"{rate:.1f}", "cpu_ms": f"{cpu_ms:.4f}"}
            append(path, {"repeat": repeat, "row": row, **figures, **versions(has_torch)})
    summarise(read(path))


def measure(row: str, seconds: float) -> tuple[float, float]:
    """Run a row in a process of its own."""
    call = [sys.executable, __file__, f"--row={row}", f"--seconds={seconds}"]
    result = subprocess.run(
        call, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    rate, cpu_ms = map(float, result.stdout.splitlines()[-1].split())
    return rate, cpu_ms


def versions(has_torch: bool) -> dict[str, str]:
    """Name what the figures depend on beside the machine."""
    from importlib.metadata import version

    return {"python": sys.version.split()[0], "torch": version("torch") if has_torch else ""}


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of results so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line of results."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


def summarise(found: list[dict[str, str]]) -> None:
    """Print the median of each row, and how many times as fast ours are as the others, by repeats."""
    for column, unit in (("images_per_s", "images/s"), ("cpu_ms", "ms of CPU an image")):
        values: dict[str, dict[int, float]] = {}
        for line in found:
            values.setdefault(line["row"], {})[int(line["repeat"])] = float(line[column])
        for row, by_repeat in values.items():
            print(f"{row:<34} {statistics.median(by_repeat.values()):8.4g} {unit}, n = {len(by_repeat)}")
        for row in (row for row in values if row.startswith("tljax")):
            for other in (other for other in values if not other.startswith("tljax")):
                shared = sorted(set(values[row]) & set(values[other]))
                ratios = [values[row][repeat] / values[other][repeat] for repeat in shared]
                ratio = estimate(ratios if column == "images_per_s" else [1 / each for each in ratios])
                if ratio is not None:
                    print(f"{row} / {other}, by {unit}: {ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")


if __name__ == "__main__":
    main()
