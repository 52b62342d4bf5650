"""A training run of 20 steps that every arrangement of devices and processes must give the same numbers of."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import jax_utils

from tests.finetuning import BATCH_SIZE, SCHEDULE, Job, make_batch, make_job
from tljax.devices import fetch, make_mesh
from tljax.finetune.devices import make_pmap_step, make_train_step, put_inputs
from tljax.finetune.mix import Mix
from tljax.finetune.optimizer import make_optimizer
from tljax.models import Net, ResNetConfig, VitConfig
from tljax.models.noise import Regularise

NUM_STEPS = 20
# Wide enough that their kernels are worth an fsdp axis.
NETS = {
    "vit": (Net(VitConfig(depth=2, width=64, num_heads=2, patch_size=8, image_size=16, num_classes=2)), 16),
    "resnet": (Net(ResNetConfig(depths=(1, 1), widths=(32, 64), stem_width=8, is_bottleneck=False, num_classes=2)), 16),
}


@functools.cache
def job_of(name: str, freeze: str | int = 1) -> Job:
    """Everything that draws is on; without more words all stages but the first are trained."""
    net, size = NETS[name]
    job = make_job(
        net, size, freeze=freeze, seed=3, average_decay=0.9, mix=Mix(mixup_alpha=0.5, cutmix_alpha=1.0),
        forward={"regularise": Regularise(dropout=0.2, stochastic_depth=0.0 if name == "resnet" else 0.3)},
    )  # fmt: skip
    # Adam would divide gradients that are rounding alone by themselves.
    tx = make_optimizer(job.groups, SCHEDULE, name="sgd", weight_decay=0.01, clip_norm=1.0, arguments={"momentum": 0.9})
    return dataclasses.replace(job, tx=tx)


def train_on_mesh(name: str, devices: list[Any], fsdp: int = 1) -> dict[str, np.ndarray]:
    """Return the losses, and all that was trained or moved, by one jitted step over a mesh."""
    job, mesh = job_of(name), make_mesh(devices, fsdp=fsdp)
    step, (state, fixed) = make_train_step(job.body, mesh), job.place(mesh)
    rows = BATCH_SIZE // jax.process_count()
    first = jax.process_index() * rows
    losses = []
    for index in range(NUM_STEPS):
        batch = make_batch(index, job.preprocess.shape[0])
        own = {key: value[first : first + rows] for key, value in batch.items()}
        state, metrics = step(state, fixed, put_inputs(own, mesh))
        losses.append(float(metrics["loss"]))
    return results(losses, fetch(state))


@functools.cache
def train_on_one(name: str) -> dict[str, np.ndarray]:
    return train_on_mesh(name, jax.devices()[:1])


def train_by_pmap(name: str) -> dict[str, np.ndarray]:
    """Return the same by the mapped step."""
    job = job_of(name)
    step, (state, fixed) = make_pmap_step(job.body), jax_utils.replicate(job.start())
    losses = []
    for index in range(NUM_STEPS):
        batch = make_batch(index, job.preprocess.shape[0])
        shards = {key: value.reshape(8, -1, *value.shape[1:]) for key, value in batch.items()}
        state, metrics = step(state, fixed, shards)
        losses.append(float(metrics["loss"]))
    return results(losses, jax_utils.unreplicate(state))


def results(losses: list[float], state: Any) -> dict[str, np.ndarray]:
    arrays = {**state.trained, **state.stats, **{f"average/{path}": value for path, value in state.average.items()}}
    return {"losses": np.array(losses, np.float32), **{path: np.asarray(value) for path, value in arrays.items()}}


def assert_same_numbers(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal but for what 20 steps make of the order of sums.

    A sum over 8 examples in another order differs in the last of 24 bits, 6e-8 of it; 20 steps with momentum, which
    multiplies rates by 10, leave a few hundred times that.
    """
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        scale = max(float(np.max(np.abs(value))), 1e-3)
        np.testing.assert_allclose(got[path], value, rtol=0, atol=2e-5 * scale, err_msg=path)


def save_from_first(folder: str) -> None:
    """Run as a job of several processes; the first writes what all have."""
    for name, fsdp in (("vit", 4), ("resnet", 1)):
        found = train_on_mesh(name, jax.devices(), fsdp)
        if jax.process_index() == 0:
            np.savez(Path(folder) / f"{name}_{fsdp}.npz", **found)  # pyright: ignore[reportArgumentType]
