"""The ways to run a training step, or an evaluation, on one device or many."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tljax.devices import FSDP, keep_placed, make_gather, put_batch, replicated, spread
from tljax.finetune.forward import Gather
from tljax.finetune.state import Arrays, Fixed, TrainState
from tljax.finetune.step import STEP_INPUTS, Batch, Body, model_inputs
from tljax.models.kernels import Kernels
from tljax.models.net import Net
from tljax.preprocess import Preprocess
from tljax.processes import are_several

PMAP_AXIS = "device"


def make_train_step(body: Body, mesh: Mesh) -> Callable[..., tuple[TrainState, Arrays]]:
    """Compile `body`, which is `train_body` with its keywords bound, for a mesh.

    Returns:
        (state, fixed, batch) -> (state, metrics), with params as `devices.sharding_of` lays them and the batch spread
        over all devices; the batch size must be a multiple of their number. The state passed in is donated: use
        the one returned, and make the first, and what is fixed, with `devices.place`.
    """
    gather = make_gather(mesh)

    def step(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Arrays]:
        state, metrics = body(state, fixed, batch, gather=gather)
        return keep_placed(state, mesh), metrics

    held = _held(mesh)
    return jax.jit(step, in_shardings=(held, held, spread(mesh)), donate_argnums=0)


def _held(mesh: Mesh) -> Any:
    """Return the sharding of all params where there is one; where each has its own, that of the arrays given."""
    return replicated(mesh) if mesh.shape[FSDP] == 1 else None


def make_pmap_step(body: Body) -> Callable[..., tuple[TrainState, Arrays]]:
    """Map `body`, which is `train_body` with its keywords bound but for `axis_name`, over devices.

    Returns:
        (state, fixed, batch) -> (state, metrics), where every array but the metrics has a leading axis of
        devices; `flax.jax_utils.replicate` makes it. The state passed in is donated.
    """

    def mapped(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Arrays]:
        return body(state, fixed, batch, axis_name=PMAP_AXIS)

    return jax.pmap(mapped, axis_name=PMAP_AXIS, out_axes=(0, None), donate_argnums=0)


def make_eval_step(
    net: Net,
    preprocess: Preprocess,
    mesh: Mesh,
    *,
    start: str | int = 0,
    compute_dtype: str | None = None,
    kernels: Kernels | None = None,
    probabilities: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> Callable[[Arrays, Arrays, Batch], jax.Array]:
    """Compile the prediction of class probabilities.

    Returns:
        (params, stats, batch) -> float32 [b k], for a batch as `train_body` takes it, labels aside. Rows that
        pad a batch have probabilities too; `predict` drops them.
    """
    gather = make_gather(mesh)
    evaluate = eval_body(
        net, preprocess, start=start, compute_dtype=compute_dtype, kernels=kernels, probabilities=probabilities,
        gather=gather,
    )  # fmt: skip

    held = _held(mesh)
    return jax.jit(evaluate, in_shardings=(held, held, spread(mesh)), out_shardings=replicated(mesh))


def eval_body(
    net: Net,
    preprocess: Preprocess,
    *,
    start: str | int,
    compute_dtype: str | None,
    kernels: Kernels | None,
    probabilities: Callable[[jax.Array], jax.Array],
    gather: Gather | None = None,
) -> Callable[[Arrays, Arrays, Batch], jax.Array]:
    """Return what `make_eval_step` compiles."""

    def evaluate(params: Arrays, stats: Arrays, batch: Batch) -> jax.Array:
        x = model_inputs(batch, net, preprocess, start)
        scores, _ = net.apply(
            params, stats, x, start=start, compute_dtype=compute_dtype, kernels=kernels, gather=gather
        )
        return probabilities(scores.astype(jnp.float32))

    return evaluate


def put_inputs(batch: Batch, mesh: Mesh) -> Arrays:
    """Bring what a step reads of this process' rows of a batch to its devices."""
    return put_batch({name: batch[name] for name in STEP_INPUTS if name in batch}, mesh)


def predict(
    eval_step: Callable[[Arrays, Arrays, Batch], jax.Array],
    params: Arrays,
    stats: Arrays,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Run `eval_step` over padded batches that carry "index" and "mask".

    Args:
        eval_step: from `make_eval_step`.
        params: on the devices, as are the `stats`.
        stats: of the net.
        batches: this process' rows of each batch.
        mesh: of the step.

    Returns:
        In every process, the index of each example of all processes, and its probabilities [n k], both in the order of
        the batches.
    """
    indices, probabilities = [], []
    for batch in batches:
        found = np.asarray(eval_step(params, stats, put_inputs(batch, mesh)))
        index, mask = _of_all_processes(batch["index"]), _of_all_processes(batch["mask"])
        indices.append(index[mask])
        probabilities.append(found[mask])
    return np.concatenate(indices), np.concatenate(probabilities)


def _of_all_processes(rows: np.ndarray) -> np.ndarray:
    return multihost_utils.process_allgather(rows, tiled=True) if are_several() else rows
