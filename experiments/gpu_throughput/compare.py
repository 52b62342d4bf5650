"""Training steps of tljax beside those of torch.compile and timm, in turns on the same device.

    python experiments/gpu_throughput/compare.py                                # a GPU: rows of README.md
    python experiments/gpu_throughput/compare.py --small --torch_python=PYTHON  # a CPU, two or three minutes

Each side is a process that holds one row at a time; both compile first, at the same time, then take turns, round by
round. Rows are written as soon as they are there; none is begun after the minutes are over.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROWS = (
    "vit_b16:all", "vit_b16:last_third", "vit_b16:cached", "vit_b16:head", "resnet50:all", "resnet50:last_third",
    "vit_s16:all", "vgg16:all",
)  # fmt: skip
SMALL_ROWS = ("vit_ti16:all", "vit_ti16:last_third", "vit_ti16:cached", "resnet18:head", "vgg11:head")
# What the issue of this comparison asks for, by row.
WANTED = {
    "vit_b16:all": 1.0, "vit_b16:last_third": 1.05, "vit_b16:head": 1.05, "vit_b16:cached": 1.7, "resnet50:all": 1.05,
    "resnet50:last_third": 1.05,
}  # fmt: skip
WARM_UP_STEPS = 3


class Side:
    """A process that takes orders; see worker.py."""

    def __init__(self, python, script, environment):
        command = [python, str(HERE / script)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.facts = self.ask(do="facts")

    def ask(self, **order):
        """Return the answer to an order; one that failed has an "error"."""
        self.tell(**order)
        return self.answer()

    def tell(self, **order):
        """Give an order, and leave its answer for later."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self):
        """Wait for the answer to the last order."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[1]} ended with status {self.process.wait()}; its error is above")
        return json.loads(line)

    def end(self):
        """Let it go."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def take_turns(sides, count, rounds):
    """Return {name: seconds a step of each round}, the sides in turns."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            answer = side.ask(do="steps", count=count)
            if "error" in answer:
                raise SystemExit(f"{name} failed in its steps: {answer['error']}")
            seconds[name].append(answer["seconds"] / count)
    return seconds


def compare(row, jax_side, torch_side, options):
    """Yield the records of a row: of torch, and of JAX with each choice of kernels."""
    base = {
        "row": row["row"],
        "model": row["model"],
        **{key: row[key] for key in ("batch_size", "dtype", "image_size")},
    }
    # torch has no stored prefix, and goes through all of the network.
    theirs = {**row, "row": "last_third"} if row["row"] == "cached" else row
    if torch_side:
        torch_side.tell(do="prepare", row=theirs, warm_up=WARM_UP_STEPS)
    torch_answer = None
    for kernels in options.kernels if row["model"].startswith(("vit", "resnet")) else options.kernels[:1]:
        answer = jax_side.ask(do="prepare", row={**row, "kernels": kernels}, warm_up=WARM_UP_STEPS)
        # Both compile at the same time, once.
        if torch_answer is None:
            torch_answer = torch_side.answer() if torch_side else {"error": ""}
            has_torch = "error" not in torch_answer
            if torch_side and not has_torch:
                yield {**base, "side": "torch", "error": torch_answer["error"], **torch_side.facts}
        if "error" in answer:
            yield {**base, "side": "jax", "kernels": kernels, "error": answer["error"], **jax_side.facts}
            continue
        sides = {"jax": jax_side, **({"torch": torch_side} if has_torch else {})}
        seconds = take_turns(sides, options.steps, options.rounds)
        for name, side in sides.items():
            yield {
                **base, "side": name, "kernels": kernels if name == "jax" else "",
                "images_per_s": round(row["batch_size"] / min(seconds[name]), 1),
                "images_per_s_median": round(row["batch_size"] / statistics.median(seconds[name]), 1),
                "ratio_to_torch": round(min(seconds["torch"]) / min(seconds["jax"]), 3)
                if has_torch and name == "jax" else "",
                **side.ask(do="report"), **side.facts,
            }  # fmt: skip
        jax_side.ask(do="drop")
    if torch_side:
        torch_side.ask(do="drop")


COLUMNS = (
    "model", "row", "side", "kernels", "images_per_s", "images_per_s_median", "ratio_to_torch", "gflops_per_image",
    "memory_gb", "compile_s", "batch_size", "dtype", "image_size", "device", "versions", "error",
)  # fmt: skip


def write(records, path):
    """Write all records so far."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(records)


def show(record):
    """Print a record in a line."""
    name = f"{record['model']}:{record['row']}"
    if "error" in record:
        print(f"{name:<20} {record['side']:<5} {record.get('kernels', ''):<13} failed: {record['error']}", flush=True)
        return
    wanted = f"  (wanted {WANTED[name]})" if name in WANTED and record["side"] == "jax" else ""
    ratio = f"  {record['ratio_to_torch']} x torch{wanted}" if record["ratio_to_torch"] else ""
    speed = f"{record['images_per_s']:>10,.1f} images/s"
    print(f"{name:<20} {record['side']:<5} {record['kernels']:<13} {speed}{ratio}", flush=True)


def parse():
    """Return the options; --small changes what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small networks and images, float32, for a CPU")
    parser.add_argument("--rows", help=f"MODEL:ROW,... (default: {','.join(ROWS)})")
    parser.add_argument("--kernels", default="auto", help="of `tljax bench train`; for each the row is measured anew")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="no row is begun after so many")
    parser.add_argument("--torch_python", default=sys.executable, help="a Python that has torch and timm")
    parser.add_argument("--torch_mode", choices=("compile", "eager"))
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--to", default=str(HERE / "results.csv"))
    options = parser.parse_args()
    size = (8, 64, 2) if options.small else (256, 224, 30)
    for name, value in zip(("batch_size", "image_size", "steps"), size, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.torch_mode = options.torch_mode or ("eager" if options.small else "compile")
    options.rows = options.rows.split(",") if options.rows else list(SMALL_ROWS if options.small else ROWS)
    options.kernels = options.kernels.split(",")
    return options


def main():
    """Compare all rows."""
    options, began = parse(), time.monotonic()
    # Both sides hold arrays at the same time.
    environment = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    jax_side = Side(sys.executable, "jax_side.py", environment)
    torch_environment = {"TORCH_SIDE_MODE": options.torch_mode}
    torch_side = None if options.no_torch else Side(options.torch_python, "torch_side.py", torch_environment)
    records = []
    for name in options.rows:
        if (time.monotonic() - began) / 60 > options.minutes:
            print(f"{name}: left out, {options.minutes} minutes are over", flush=True)
            continue
        model, row = name.split(":")
        what = {
            "model": model, "row": row, "batch_size": options.batch_size, "image_size": options.image_size,
            "dtype": "float32" if options.small else "bfloat16",
        }  # fmt: skip
        for record in compare(what, jax_side, torch_side, options):
            records.append(record)
            show(record)
            write(records, options.to)
    for side in (jax_side, torch_side):
        if side is not None:
            side.end()
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; {options.to}")


if __name__ == "__main__":
    main()
