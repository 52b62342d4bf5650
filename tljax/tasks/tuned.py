"""What a finished run adds to the pretrained net: one safetensors file, small where little was trained."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tljax import rundir
from tljax.finetune.lora import add_lora
from tljax.plain import differences
from tljax.tasks.plan import Plan
from tljax.tasks.sections import call
from tljax.tasks.training import Result
from tljax.weights import Pretrained, load

TUNED = "tuned.safetensors"


def save_tuned(workdir: Path, plan: Plan, result: Result) -> None:
    """Write the params that were trained, low-rank deltas apart, and the statistics that moved.

    With them go the hash of the pretrained params that they belong to, the image size, and the factor on the deltas.
    """
    pretrained = plan.inputs.pretrained
    moved = {path: stat for path, stat in result.stats.items() if not np.array_equal(stat, pretrained.stats[path])}
    arrays = {path: np.asarray(value) for path, value in {**result.trained, **moved}.items()}
    write_tuned(workdir, arrays, pretrained, plan.forward.lora_scaling)


def write_tuned(
    workdir: Path, arrays: Mapping[str, np.ndarray], pretrained: Pretrained, lora_scaling: float | None
) -> None:
    """Write arrays that take the place of those of a pretrained net, or are low-rank deltas of them."""
    facts = {
        "pretrained": pretrained.fingerprint(),
        "image_size": pretrained.preprocess.size,
        "lora_scaling": lora_scaling,
    }
    rundir.write_bytes(workdir / TUNED, save(dict(arrays), {"tljax": json.dumps(facts)}))


def load_original(workdir: Path, config: Mapping[str, Any], num_classes: int) -> Pretrained:
    """Return the net of `config.model`, at the image size at which a run ended.

    Args:
        workdir: of the run.
        config: of the run, or of a task that takes its result up.
        num_classes: of the run.

    Raises:
        FileNotFoundError: the run has left no such file as `save_tuned` writes.
        ValueError: that is damaged, or belongs to other pretrained weights.
    """
    facts, _ = read_tuned(workdir / TUNED)
    model = {**config["model"], "image_size": facts["image_size"]}
    pretrained = call("model", {"model": model}, load, num_classes=num_classes)
    found = pretrained.fingerprint()
    if found != facts["pretrained"]:
        problems = differences({"params": facts["pretrained"]}, {"params": found})
        raise ValueError(
            f"the weights {pretrained.name!r} are not those that {workdir} was trained from: {'; '.join(problems)}"
        )
    return pretrained


def load_tuned(workdir: Path, config: Mapping[str, Any], class_names: tuple[str, ...]) -> Pretrained:
    """Return the pretrained net of a config with what `save_tuned` wrote in its place; raises as `load_original`."""
    pretrained = load_original(workdir, config, len(class_names))
    facts, arrays = read_tuned(workdir / TUNED)
    params = {**pretrained.params, **{name: value for name, value in arrays.items() if name not in pretrained.stats}}
    if facts["lora_scaling"] is not None:
        params = add_lora(params, scaling=facts["lora_scaling"])
    stats = {name: arrays.get(name, value) for name, value in pretrained.stats.items()}
    return dataclasses.replace(pretrained, params=dict(params), stats=stats, class_names=class_names)


def read_tuned(path: Path) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Return what a file of `save_tuned` says, and its arrays."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the run is not finished, or was made before there was such a file")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["tljax"])
            return facts, {name: jnp.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; make it again: remove done.json and run the task") from error
