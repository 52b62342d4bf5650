"""The ways to run a training step, or an evaluation, on one device or many."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tljax.devices import MESH_AXES
from tljax.finetune.state import Arrays, Fixed, TrainState
from tljax.finetune.step import Batch, Body, model_inputs
from tljax.models.kernels import Kernels
from tljax.models.net import Net
from tljax.preprocess import Preprocess

PMAP_AXIS = "device"


def make_train_step(body: Body, mesh: Mesh) -> Callable[..., tuple[TrainState, Arrays]]:
    """Compile `body`, which is `train_body` with its keywords bound, for a mesh.

    Returns:
        (state, fixed, batch) -> (state, metrics), with params on every device and the batch spread over
        them; the batch size must be a multiple of the number of devices. The state passed in is donated: use
        the one returned, and make the first with `replicate`.
    """
    replicated, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(MESH_AXES))
    return jax.jit(body, in_shardings=(replicated, replicated, spread), out_shardings=replicated, donate_argnums=0)


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

    def evaluate(params: Arrays, stats: Arrays, batch: Batch) -> jax.Array:
        x = model_inputs(batch, net, preprocess, start)
        scores, _ = net.apply(params, stats, x, start=start, compute_dtype=compute_dtype, kernels=kernels)
        return probabilities(scores.astype(jnp.float32))

    replicated, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(MESH_AXES))
    return jax.jit(evaluate, in_shardings=(replicated, replicated, spread), out_shardings=replicated)


def predict(
    eval_step: Callable[[Arrays, Arrays, Batch], jax.Array], params: Arrays, stats: Arrays, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Run `eval_step` over padded batches that carry "index" and "mask".

    Returns:
        The index of each example, and its probabilities [n k], both in the order of the batches.
    """
    indices, probabilities = [], []
    for batch in batches:
        mask = batch["mask"]
        inputs = {key: value for key, value in batch.items() if key not in ("index", "mask")}
        indices.append(batch["index"][mask])
        probabilities.append(np.asarray(eval_step(params, stats, inputs))[mask])
    return np.concatenate(indices), np.concatenate(probabilities)
