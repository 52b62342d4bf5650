"""Frozen BatchNorm or not: see README.md.

    python experiments/frozen_batch_norm/run.py

Pretrains a ResNet-18 on monocrystalline cells, exports it, and runs the sweep on polycrystalline ones. What is done is
left alone: give the same command again after whatever has ended it.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "pretrain.py"
# MODEL of sweep.py is in it.
WORKDIR = Path("runs/frozen_batch_norm")


def main() -> None:
    """Run what is left, and keep the table of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_parallel", type=int, default=2)
    arguments = parser.parse_args()
    run, model, half_written = (WORKDIR / name for name in ("pretrain", "pretrained", "pretrained.part"))
    tljax("finetune", f"--config={CONFIG}:mono", f"--workdir={run}")
    if not model.exists():
        shutil.rmtree(half_written, ignore_errors=True)
        tljax("export", f"{run}", "--format=hf", f"--to={half_written}")
        half_written.rename(model)
    # XLA's CPU backend is slow at convolutions with a kernel for each of several runs.
    alone = (f"--max_parallel={arguments.max_parallel}", "--together=never")
    tljax("sweep", f"{HERE / 'sweep.py'}", f"--workdir={WORKDIR}", *alone)
    shutil.copy(WORKDIR / "results.csv", HERE / "results.csv")


def tljax(*arguments: str) -> None:
    """Run a command of tljax, and end where it fails, with its exit status."""
    print("tljax", *arguments, flush=True)
    ended = subprocess.run([sys.executable, "-m", "tljax.cli", *arguments], check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
