"""Runs that differ in numbers alone, trained side by side in one program: the step of one run, vmapped.

Every array of a state has a first axis of runs. What differs between the runs goes into the program as numbers, so that
it is compiled once for all of them; each has batches of its own, taken from one bank of stored activations.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tljax.finetune.optimizer import scaled_optimizer
from tljax.finetune.state import Arrays, Fixed, TrainState
from tljax.finetune.step import Batch, train_body
from tljax.preprocess import Preprocess

RUNS = "runs"
# Steps that one call of the program can take.
MOST_STEPS = 64
# The settings of penalties that are numbers in the program.
STRENGTHS = ("strength", "head_strength")

OneRun = Callable[[TrainState, Arrays, Fixed, Batch], tuple[TrainState, Arrays]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the runs have in common.

    Args:
        forward: how the net runs.
        preprocess: how bytes become numbers.
        labels: {path: label} of the params.
        optimizer: arguments of `scaled_optimizer` that are no numbers of a run.
        penalties: of one of the runs; their strengths are those of each run.
        loss: of scores and targets, with the keyword "label_smoothing".
        objective: other keyword arguments of `train_body`.
    """

    forward: Any
    preprocess: Preprocess
    labels: Mapping[str, str]
    optimizer: Mapping[str, Any]
    penalties: Sequence[Any]
    loss: Callable[..., jax.Array]
    objective: Mapping[str, Any]


def numbers_of(
    *,
    seed: int,
    schedules: Mapping[str, Callable[[Any], Any]],
    num_steps: int,
    multipliers: Mapping[str, float],
    weight_decay: float,
    label_smoothing: float,
    penalties: Sequence[Any],
    class_weights: Sequence[float] | None,
) -> Arrays:
    """Return what one run may have for itself, as arrays.

    Args:
        seed: of what a step draws.
        schedules: {label: rate as a function of the step}; in the program a rate is looked up by the step.
        num_steps: of the run.
        multipliers: {path: factor on the rate} of the trained params.
        weight_decay: of the optimizer.
        label_smoothing: of the loss.
        penalties: of the run.
        class_weights: of the loss; None for none, in all runs.
    """
    steps = jnp.arange(num_steps)
    rates = {label: np.asarray(jax.vmap(schedule)(steps), np.float32) for label, schedule in schedules.items()}
    return {
        # The bits that `jax.random.key` takes of an int.
        "seed": np.uint32(seed & 0xFFFFFFFF),
        "rates": rates,
        "multipliers": {path: np.float32(value) for path, value in multipliers.items()},
        "weight_decay": np.float32(weight_decay),
        "label_smoothing": np.float32(label_smoothing),
        "penalties": [
            {name: np.float32(getattr(penalty, name)) for name in STRENGTHS if hasattr(penalty, name)}
            for penalty in penalties
        ],
        "class_weights": None if class_weights is None else np.asarray(class_weights, np.float32),
    }


def one_run(recipe: Recipe) -> OneRun:
    """Return the training step of one run, as a function of its numbers too: that of `train_body`."""

    def step(state: TrainState, numbers: Arrays, fixed: Fixed, batch: Batch) -> tuple[TrainState, Arrays]:
        tx = scaled_optimizer(
            recipe.labels,
            {label: rates.__getitem__ for label, rates in numbers["rates"].items()},
            numbers["multipliers"].__getitem__,
            weight_decay=numbers["weight_decay"],
            **recipe.optimizer,
        )
        penalties = [
            replace(penalty, **strengths)
            for penalty, strengths in zip(recipe.penalties, numbers["penalties"], strict=True)
        ]
        return train_body(
            state, fixed, batch, forward=recipe.forward, tx=tx, preprocess=recipe.preprocess, seed=numbers["seed"],
            loss=functools.partial(recipe.loss, label_smoothing=numbers["label_smoothing"]), penalties=penalties,
            class_weights=numbers["class_weights"], **recipe.objective,
        )  # fmt: skip

    return step


def make_program(step: OneRun, mesh: Mesh) -> Any:
    """Compile many steps of all runs.

    Args:
        step: from `one_run`.
        mesh: from `runs_mesh`.

    Returns:
        Jitted (state, numbers, fixed, bank, orders, count) -> (state, {metric: [MOST_STEPS runs]}), with the first
        `count` rows of the metrics filled. State and numbers have a first axis of runs. `bank` is as for `take`, and
        so are the `orders`, with axes of steps and of runs in front. The state is donated.
    """
    along = NamedSharding(mesh, P(RUNS))

    def keep(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, along), tree)

    def advance(
        state: TrainState, numbers: Arrays, fixed: Fixed, bank: Arrays, orders: Arrays, count: jax.Array
    ) -> tuple[TrainState, Arrays]:
        def all_runs(state: TrainState, index: jax.Array) -> tuple[TrainState, Arrays]:
            order = jax.tree.map(lambda array: array[index], orders)
            batch = jax.vmap(take, (None, 0))(bank, order)
            state, found = jax.vmap(step, (0, 0, None, 0))(state, numbers, fixed, batch)
            return keep(state), found

        shapes = jax.eval_shape(all_runs, state, count)[1]
        rows = orders["index"].shape[0]
        empty = {name: jnp.zeros((rows, *leaf.shape), leaf.dtype) for name, leaf in shapes.items()}

        def turn(index: jax.Array, carry: Any) -> Any:
            state, found = all_runs(carry[0], index)
            return state, {name: carry[1][name].at[index].set(values) for name, values in found.items()}

        return jax.lax.fori_loop(0, count, turn, (keep(state), empty))

    return jax.jit(advance, donate_argnums=0)


def take(bank: Arrays, order: Arrays) -> Batch:
    """Return the batch of one run.

    Args:
        bank: "label" [n ...] of all images and, where it fits into memory, "activation" [rows ...] of all their views.
        order: "index" [b] of images and "row" [b] of their views; in place of the last, "activation" [b ...].
    """
    activation = order["activation"] if "activation" in order else bank["activation"][order["row"]]
    return {"activation": activation, "label": bank["label"][order["index"]]}


def make_predictor(
    assemble: Callable[..., Arrays], evaluate: Callable[[Arrays, Arrays, Batch], jax.Array]
) -> Callable[..., jax.Array]:
    """Compile the prediction of probabilities by all runs: (trained, stats, fixed, bank, order) -> [runs b k].

    Args:
        assemble: (trained, fixed params) -> params of one run.
        evaluate: (params, stats, batch) -> [b k] of one run.
    """

    def predict(trained: Arrays, stats: Arrays, fixed: Fixed, bank: Arrays, order: Arrays) -> jax.Array:
        return evaluate(assemble(trained, fixed.params), stats, take(bank, order))

    return jax.jit(jax.vmap(predict, (0, 0, None, None, 0)))


def runs_mesh(num_runs: int) -> Mesh:
    """Return the devices of this process that can share so many runs evenly; what is vmapped needs no message."""
    devices = jax.local_devices()
    return Mesh(np.asarray(devices[: math.gcd(num_runs, len(devices))]), (RUNS,))


def put_runs(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Bring arrays with an axis of runs to the devices, which share the runs."""
    sharding = NamedSharding(mesh, P(*[None] * axis, RUNS))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


def put_shared(tree: Any, mesh: Mesh) -> Any:
    """Bring arrays that all runs read to every device."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P())), tree)


def stack(trees: Sequence[Any]) -> Any:
    """Give trees of arrays a first axis of runs, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def choose(tree: Any, place: int) -> Any:
    """Return what a run has of a stacked tree, on the host."""
    return jax.tree.map(lambda leaf: np.array(leaf[place]), tree)


def bytes_of(tree: Any) -> int:
    """Return the size of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
