"""Run directories of made-up studies: numbers of a likely size, none of them measured."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("embed", "block_00", "block_01", "block_02", "block_03", "norm", "head")
CLASSES = ("intact", "cracked", "dark")
NUM_TEST = 300
FACTORS = {
    "groups.freeze": ["embed", "block_01", "block_03"],
    "schedule.learning_rate": [1e-4, 3e-4, 1e-3],
}


def start() -> dict[str, Any]:
    packages = {"tljax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2"}
    return {
        "python": "3.11.7", "platform": "Linux x86_64", "packages": packages, "devices": ["cpu:cpu"], "cpu_count": 2,
        "git": "0123456789ab", "argv": ["tljax"], "started": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True))


def make_config(levels: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A config with some dotted fields set."""
    config: dict[str, Any] = {
        "seed": seed,
        "cache_dir": f"/somewhere/{seed}",
        "split": {"kind": "stratified", "repeat": 0},
        "finetune": {"epochs": 5, "keep": "last"},
    }
    for field, value in levels.items():
        *above, name = field.split(".")
        section = config
        for part in above:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def accuracy_of(levels: Mapping[str, Any], factors: Mapping[str, Sequence[Any]], seed: int) -> float:
    """A main effect of each factor, one interaction, and a spread that cells with the same seed share in part."""
    at = [list(values).index(levels[name]) / max(len(values) - 1, 1) for name, values in factors.items()]
    effect = 0.05 * at[0] - 0.02 * at[-1] + 0.03 * at[0] * at[-1]
    own = np.random.default_rng([seed, *(int(100 * one) for one in at)]).normal()
    return 0.85 + effect + 0.01 * np.random.default_rng(seed).normal() + 0.006 * own


def write_run(path: Path, config: Mapping[str, Any], accuracy: float, *, steps: int = 40, trained: int = 3) -> None:
    """Write a finished run with a test accuracy."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(list(path.name.encode()))
    write_json(path / "config.json", {"task": "finetune", "config": config})
    write_json(path / "env.json", [start()])
    drift = {
        f"drift/{stage}/{name}": value * (1 + 0.1 * float(rng.normal()))
        for at, stage in enumerate(STAGES[-1 - trained : -1])
        for name, value in (("relative_l2", 0.01 * (at + 1)), ("cka", 0.9))
    }
    metrics = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.02, "roc_auc": min(accuracy + 0.04, 1.0)}
    done = {**metrics, "seconds": 20.0 + 10 * trained + float(rng.normal()), "num_trained": 1e5 * 4.0**trained, **drift}
    write_json(path / "done.json", done)
    write_json(path / "evaluations.json", [_evaluation(metrics, rng)])
    write_json(path / "classes.json", list(CLASSES))
    write_json(path / "partition.json", [{"stage": stage, "phase": 0, "num_params": 100} for stage in STAGES])
    lines = []
    for step in range(steps):
        lines.append(
            {"step": step, "loss": float(np.exp(-step / 15) + 0.05 * rng.normal()), "accuracy": 0.5, "phase": 0}
        )
        if step % 10 == 9:
            seen = accuracy - 0.3 * np.exp(-step / 10) + 0.005 * float(rng.normal())
            lines.append({"step": step, "val_accuracy": seen, "val_balanced_accuracy": seen - 0.01})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def _evaluation(metrics: Mapping[str, float], rng: np.random.Generator) -> dict[str, Any]:
    hits = round(NUM_TEST / 3 * metrics["accuracy"])
    missed = NUM_TEST // 3 - hits
    first = int(rng.integers(0, missed + 1))
    rest = [first, missed - first]
    confusion = [[*rest[:row], hits, *rest[row:]] for row in range(3)]
    groups = {
        name: {**metrics, "accuracy": metrics["accuracy"] + shift} for name, shift in (("mono", 0.01), ("poly", -0.01))
    }
    return {
        "method": "finetune", "features": "from head", "depth": None, "chosen": {}, "n_test": NUM_TEST,
        "metrics": metrics, "by_group": groups, "confusion": confusion,
    }  # fmt: skip


def write_failure(path: Path, config: Mapping[str, Any], error: str, attempts: int = 2) -> None:
    path.mkdir(parents=True)
    write_json(path / "config.json", {"task": "finetune", "config": config})
    write_json(path / "error.json", {"error": error, "attempts": attempts})


def write_study(
    folder: Path,
    factors: Mapping[str, Sequence[Any]] = FACTORS,
    seeds: Sequence[int] = range(5),
    *,
    baseline: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a study with a run for each cell and seed, all of them finished."""
    folder.mkdir(parents=True)
    said = {
        "slug": folder.name, "title": "Depth & rate <made up>", "question": "Does 100% of the net have to be trained?",
        "task": "finetune", "factors": {name: list(values) for name, values in factors.items()}, "seeds": list(seeds),
        "metric": "accuracy", "baseline": baseline, **changes,
    }  # fmt: skip
    write_json(folder / "study.json", said)
    for values in itertools.product(*factors.values()):
        levels = dict(zip(factors, values, strict=True))
        for seed in seeds:
            write_run(
                run_path(folder, levels, seed),
                make_config(levels, seed),
                accuracy_of(levels, factors, seed),
                trained=1 + next(iter(factors.values())).index(values[0]) % 4,
            )
    return folder


def run_path(folder: Path, levels: Mapping[str, Any], seed: int) -> Path:
    return folder / "runs" / ("_".join(str(value) for value in levels.values()) + f"_{seed}")
