"""Measure the time from the start of `tljax finetune` to its first step, with and without compiled programs on disk.

    python experiments/startup/measure.py          # some five minutes on two CPU cores

Each start is a process of its own, of configs/images.py on 100 pictures of noise; ways take turns, round by round. It
is ended after its first step.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NUM_PICTURES = 100
# From images: a step of the whole net; from a prefix that is stored already: of its end alone.
SOURCES = {"images": "never", "stored": "always"}
# "before": compiled when the first batch is there, nothing kept; "ahead": in the background; "empty": programs are kept
# too, and there are none yet; "kept": those of the start before are read.
WAYS = ("before", "ahead", "empty", "kept")
RUN = "import sys; from tljax.cli import main; sys.exit(main(sys.argv[1:]))"
IN_FOREGROUND = """
from tljax.tasks.ahead import AheadOfTime, compile_step
AheadOfTime.begin = lambda self: None
AheadOfTime.wait = lambda self: compile_step(self.jitted, self.arguments())
"""
PARTS = ("open data", "load weights", "plan", "stored prefix", "state to the devices", "hash of what is frozen",
         "first batch", "wait for the compiled step", "first step")  # fmt: skip


def main():
    """Measure all ways, and write results.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures")
        config = write_config(Path(folder))
        # Makes the store.
        start(Path(folder), config, "always", "ahead")
        for number in range(rounds):
            for source, cache in SOURCES.items():
                shutil.rmtree(Path(folder) / "compiled", ignore_errors=True)
                for way in WAYS:
                    row = start(Path(folder), config, cache, way)
                    rows.append({"round": number, "from": source, "compiled": way, **row})
                    print(rows[-1], flush=True)
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_pictures(folder):
    """Two classes of noise."""
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 112), ("light", 142)):
        (folder / name).mkdir(parents=True)
        for index in range(NUM_PICTURES // 2):
            noise = rng.normal(brightness, 40, (256, 256, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{index:02d}.jpg")


def write_config(folder):
    """Copy configs/images.py, with a section that flags can change."""
    text = (ROOT / "configs" / "images.py").read_text()
    path = folder / "config.py"
    path.write_text(
        text.replace("    return config", "    config.execution = dict(compiled_dir='')\n    return config")
    )
    return path


def start(folder, config, cache, way):
    """Run to the first step; return the seconds from the start of the process to it, and of its parts."""
    workdir = Path(tempfile.mkdtemp(dir=folder))
    command = [
        sys.executable, "-c", (IN_FOREGROUND if way == "before" else "") + RUN, "finetune", f"--config={config}",
        f"--workdir={workdir}", f"--config.data.root={folder / 'pictures'}", f"--config.cache_dir={folder / 'cache'}",
        f"--config.finetune.cache={cache}", "--config.finetune.epochs=1",
        f"--config.execution.compiled_dir={folder / 'compiled'}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if way in ("before", "ahead"):
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    began = time.time()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (workdir / "startup.json").exists():
            time.sleep(0.05)
        # What comes after the first step is not asked for.
        process.kill()
    (record,) = json.loads((workdir / "startup.json").read_text())
    return {
        "process_s": round(record["first_step_at"] - began, 2),
        "run_s": round(record["total_s"], 2),
        **{name: round(record["parts_s"][name], 2) for name in PARTS},
        "lower_s": round(record["lower_s"], 2),
        "compile_s": round(record["compile_s"], 2),
        "is_compiled_from_cache": record["is_compiled_from_cache"],
    }


if __name__ == "__main__":
    main()
