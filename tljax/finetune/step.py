"""One training step as a pure function, and the ways to run it on many devices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tljax import paths
from tljax.finetune.losses import example_shares, is_correct, softmax_cross_entropy
from tljax.models.net import Net
from tljax.preprocess import Preprocess

Arrays = dict[str, Any]
Batch = Mapping[str, Any]
Body = Callable[..., tuple["TrainState", Arrays]]

MESH_AXES = ("data", "fsdp")
PMAP_AXIS = "device"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training step changes.

    Args:
        trained: the trained params; the frozen ones are an input of the step.
        stats: running statistics of all stages; those of frozen stages do not move.
        opt_state: of the optimizer over `trained`.
        step: number of steps taken, int32.
    """

    trained: Any
    stats: Any
    opt_state: Any
    step: Any


def init_state(trained: Arrays, stats: Arrays, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(trained=trained, stats=stats, opt_state=tx.init(trained), step=jnp.zeros((), jnp.int32))


def train_body(
    state: TrainState,
    frozen: Arrays,
    batch: Batch,
    *,
    net: Net,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    train_from: str | int,
    start: str | int = 0,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = softmax_cross_entropy,
    axis_name: str | None = None,
) -> tuple[TrainState, Arrays]:
    """Take one step: differentiate and update the trained params only.

    Because nothing else is differentiated, a frozen prefix costs no backward pass, whatever is clipped or
    logged, and no optimizer can move a frozen param.

    Args:
        state: before the step.
        frozen: the frozen params, at least those of the stages that run.
        batch: "label" [b] ints, optionally "weight" [b], and "image" uint8 [b h w 3] when `start` is 0, else
            "activation", the output of the stage before `start`.
        net: the network.
        tx: optimizer over `state.trained`.
        preprocess: how bytes become numbers.
        train_from: first stage in training mode, `Groups.train_from`.
        start: first stage to run.
        loss: (scores [b k], labels [b]) -> loss of each example [b].
        axis_name: mapped axis that the batch is spread over, under `jax.pmap`. BatchNorm in training mode
            then uses the statistics of each device's share, where the jitted step uses those of the batch.

    Returns:
        The state after the step, and "loss", "accuracy" (means by weight) and "grad_norm" (before clipping)
        of the batch.
    """
    x, labels = _inputs(batch, net, preprocess, start), batch["label"]
    weights = batch["weight"] if "weight" in batch else jnp.ones(labels.shape, jnp.float32)
    shares = example_shares(weights, axis_name)
    # A rule can train a stage in front of one that is frozen, whose statistics stay all the same.
    frozen_stages = set(map(paths.stage_of, frozen)) - set(map(paths.stage_of, state.trained))

    def batch_loss(trained: Arrays) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
        params = paths.merge(trained, frozen)
        scores, stats = net.apply(params, state.stats, x, start=start, train_from=train_from, frozen=frozen_stages)
        return jnp.sum(shares * loss(scores, labels)), (scores, stats)

    (value, (scores, stats)), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.trained)
    metrics = {"loss": value, "accuracy": jnp.sum(shares * is_correct(scores, labels))}
    if axis_name is not None:
        # The shares already sum to 1 over all devices.
        metrics, grads = jax.lax.psum((metrics, grads), axis_name)
        stats = _mean_of_moved(stats, state.stats, axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    return TrainState(trained=trained, stats=stats, opt_state=opt_state, step=state.step + 1), metrics


def _inputs(batch: Batch, net: Net, preprocess: Preprocess, start: str | int) -> jax.Array:
    if net.depth(start) == 0:
        return preprocess.normalise(batch["image"])
    # Stores keep half the bits; what is computed from them is computed in full.
    return batch["activation"].astype(jnp.float32)


def _mean_of_moved(stats: Arrays, before: Arrays, axis_name: str) -> Arrays:
    """Average statistics over devices, except those that no stage replaced: a mean may round them."""
    return {path: stat if stat is before[path] else jax.lax.pmean(stat, axis_name) for path, stat in stats.items()}


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """Arrange devices for data parallelism."""
    return Mesh(np.asarray(devices).reshape(-1, 1), MESH_AXES)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree of arrays to every device of the mesh.

    Always a copy: the step donates its state, which would otherwise delete the caller's arrays.
    """
    # device_put shares the array of a device that holds it already, `may_alias=False` or not.
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    return jax.device_put(copies, NamedSharding(mesh, P()))


def make_train_step(body: Body, mesh: Mesh) -> Callable[..., tuple[TrainState, Arrays]]:
    """Compile `body`, which is `train_body` with its keywords bound, for a mesh.

    Returns:
        (state, frozen, batch) -> (state, metrics), with params on every device and the batch spread over
        them; the batch size must be a multiple of the number of devices. The state passed in is donated: use
        the one returned, and make the first with `replicate`.
    """
    replicated, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(MESH_AXES))
    return jax.jit(body, in_shardings=(replicated, replicated, spread), out_shardings=replicated, donate_argnums=0)


def make_pmap_step(body: Body) -> Callable[..., tuple[TrainState, Arrays]]:
    """Map `body`, which is `train_body` with its keywords bound but for `axis_name`, over devices.

    Returns:
        (state, frozen, batch) -> (state, metrics), where every array but the metrics has a leading axis of
        devices; `flax.jax_utils.replicate` makes it. The state passed in is donated.
    """

    def mapped(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Arrays]:
        return body(state, frozen, batch, axis_name=PMAP_AXIS)

    return jax.pmap(mapped, axis_name=PMAP_AXIS, out_axes=(0, None), donate_argnums=0)


def make_eval_step(
    net: Net, preprocess: Preprocess, mesh: Mesh, *, start: str | int = 0
) -> Callable[[Arrays, Arrays, Batch], jax.Array]:
    """Compile the prediction of class probabilities.

    Returns:
        (params, stats, batch) -> float32 [b k], for a batch as `train_body` takes it, labels aside. Rows that
        pad a batch have probabilities too; `predict` drops them.
    """

    def evaluate(params: Arrays, stats: Arrays, batch: Batch) -> jax.Array:
        scores, _ = net.apply(params, stats, _inputs(batch, net, preprocess, start), start=start)
        return jax.nn.softmax(scores.astype(jnp.float32))

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
