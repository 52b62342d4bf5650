"""One training step as a pure function; `devices` runs it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax.finetune.forward import Forward, Gather, example_keys, trained_kernels
from tljax.finetune.losses import as_targets, example_shares, is_correct, softmax_cross_entropy
from tljax.finetune.mix import Mix, mix_batch
from tljax.finetune.penalties import Penalty, PenaltyInputs
from tljax.finetune.state import Arrays, Fixed, TrainState, update_averages
from tljax.models.net import Net
from tljax.paths import stage_of
from tljax.preprocess import Preprocess

Batch = Mapping[str, Any]
Body = Callable[..., tuple[TrainState, Arrays]]
Loss = Callable[[jax.Array, jax.Array], jax.Array]

# What a step reads of a batch.
STEP_INPUTS = ("image", "activation", "label", "weight")


def train_body(
    state: TrainState,
    fixed: Fixed,
    batch: Batch,
    *,
    forward: Forward,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int | jax.Array = 0,
    loss: Loss = softmax_cross_entropy,
    correct: Loss = is_correct,
    class_weights: tuple[float, ...] | jax.Array | None = None,
    mix: Mix | None = None,
    penalties: Sequence[Penalty] = (),
    average_decay: float | None = None,
    num_parts: int = 1,
    axis_name: str | None = None,
    gather: Gather | None = None,
) -> tuple[TrainState, Arrays]:
    """Take one step: differentiate and update the trained params only.

    Because nothing else is differentiated, a frozen prefix costs no backward pass, whatever is clipped or
    logged, and no optimizer can move a frozen param.

    Args:
        state: before the step.
        fixed: what the step only reads.
        batch: "label" [b] ints or [b k] shares of the classes, optionally "weight" [b], and "image" uint8 [b h w 3]
            when `forward.start` is the first stage, else "activation", the output of the stage before it.
        forward: which stages run, and how.
        tx: optimizer over `state.trained`.
        preprocess: how bytes become numbers.
        seed: of what the step draws at random, which is a function of it, of `state.step` and of the place of an
            example in the batch.
        loss: (scores [b k], targets [b k]) -> loss of each example [b].
        correct: likewise how right each example is, from 0 to 1; the mean is the "accuracy".
        class_weights: factor on the targets of each class; None for 1.
        mix: mixing of images; None for none.
        penalties: added to the loss.
        average_decay: of the average that `state` keeps; None where it keeps none.
        num_parts: parts of the batch that run one after the other, their gradients added up: the same step in less
            memory, but for BatchNorm in training mode and penalties on a batch, which see a part at a time.
        axis_name: mapped axis that the batch is spread over, under `jax.pmap`.
        gather: see `Net.apply`.

    Returns:
        The state after the step, and of the batch "loss" (without penalties) and "accuracy" (means by weight),
        "grad_norm" (before clipping), "update_norm" (of what is added to the params), and "penalty" where there are
        penalties.

    Raises:
        ValueError: activations are to be mixed, which only images are, or the parts do not divide the batch.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    examples = _examples(batch, forward, preprocess, key, axis_name, mix, class_weights)
    num_shares = num_parts * (1 if axis_name is None else jax.lax.axis_size(axis_name))

    def part_loss(trained: Arrays, moving: Arrays, part: Arrays) -> tuple[jax.Array, tuple[Arrays, Arrays]]:
        params = forward.assemble(trained, fixed.params, state.settled)
        taps = tuple(dict.fromkeys(tap for penalty in penalties for tap in penalty.taps))
        scores, stats, outputs = forward.run(
            params, {**state.stats, **moving}, part["x"], part["key"], taps=taps, axis_name=axis_name, gather=gather
        )
        value = jnp.sum(part["share"] * loss(scores, part["weighted_target"]))
        metrics = {"loss": value, "accuracy": jnp.sum(part["share"] * correct(scores, part["target"]))}
        if penalties:
            inputs = _penalty_inputs(forward, fixed, trained, params, outputs, part["x"], penalties, gather)
            metrics["penalty"] = jnp.sum(jnp.stack([penalty(inputs) for penalty in penalties])) / num_shares
            value += metrics["penalty"]
        return value, (metrics, {path: stats[path] for path in moving})

    moving = {path: stat for path, stat in state.stats.items() if forward.moves(path)}
    metrics, moving, grads = _add_up(part_loss, state.trained, moving, examples, num_parts)
    if axis_name is not None:
        # The shares already sum to 1 over all devices.
        metrics, grads = jax.lax.psum((metrics, grads), axis_name)
        moving = jax.lax.pmean(moving, axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.trained)
    metrics["update_norm"] = optax.tree.norm(updates)
    trained: Any = optax.apply_updates(state.trained, updates)
    stats = {**state.stats, **moving}
    return TrainState(
        trained=trained,
        settled=state.settled,
        stats=stats,
        opt_state=opt_state,
        average=update_averages(state, trained, stats, average_decay),
        step=state.step + 1,
    ), metrics


def model_inputs(batch: Batch, net: Net, preprocess: Preprocess, start: str | int) -> jax.Array:
    """Return what the stage `start` reads: normalised images, or stored activations."""
    if net.depth(start) == 0:
        return preprocess.normalise(batch["image"])
    # Stores keep half the bits; what is computed from them is computed in full.
    return batch["activation"].astype(jnp.float32)


def _examples(
    batch: Batch, forward: Forward, preprocess: Preprocess, key: jax.Array, axis_name: str | None, mix: Mix | None,
    class_weights: Sequence[float] | jax.Array | None,
) -> Arrays:  # fmt: skip
    """Return what the parts of a batch are cut from: inputs "x", targets, "share" of the mean, and "key"."""
    x, labels = model_inputs(batch, forward.net, preprocess, forward.start), batch["label"]
    size = labels.shape[0]
    targets = as_targets(labels, forward.net.num_classes)
    if mix is not None and mix.is_on:
        if "image" not in batch:
            raise ValueError("mix takes images: set finetune.cache to 'never', or leave mix out")
        x, targets = mix_batch(x, targets, jax.random.fold_in(key, 1), mix, axis_name=axis_name)
    factors = jnp.ones((1,), jnp.float32) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    weights = batch["weight"] if "weight" in batch else jnp.ones((size,), jnp.float32)
    keys = example_keys(jax.random.fold_in(key, 2), size, axis_name)
    shares = example_shares(weights, axis_name)
    return {"x": x, "target": targets, "weighted_target": targets * factors[None], "share": shares, "key": keys}


def original_taps(penalties: Sequence[Penalty]) -> tuple[str, ...]:
    """Return the stages whose outputs in the pretrained net are wanted, each once."""
    return tuple(dict.fromkeys(tap for penalty in penalties if penalty.needs_original for tap in penalty.taps))


def originals(
    forward: Forward, trained: Mapping[str, Any], penalties: Sequence[Penalty], params: Mapping[str, Any],
    stats: Mapping[str, Any],
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """Choose what `Fixed` has to hold of the pretrained net: no more than the penalties read.

    Args:
        forward: how the net runs.
        trained: the trained params; only their paths are looked at.
        penalties: of the step.
        params: all pretrained params, or their shapes.
        stats: all pretrained statistics, or their shapes.

    Returns:
        `Fixed.original` and `Fixed.original_stats`.
    """
    if not penalties:
        return {}, {}
    changed, net = trained_kernels(trained), forward.net
    last = max((net.depth(tap) for tap in original_taps(penalties)), default=-1)
    running = net.stages[net.depth(forward.start) : last + 1]
    return (
        {path: params[path] for path in net.shapes if path in changed or stage_of(path) in running},
        {path: stats[path] for path in net.stat_shapes if stage_of(path) in running},
    )


def _penalty_inputs(
    forward: Forward, fixed: Fixed, trained: Arrays, params: Arrays, outputs: Arrays, x: jax.Array,
    penalties: Sequence[Penalty], gather: Gather | None,
) -> PenaltyInputs:  # fmt: skip
    changed = trained_kernels(trained)
    taps = original_taps(penalties)
    return PenaltyInputs(
        params={path: params[path] for path in changed},
        original={path: fixed.original[path] for path in changed},
        outputs=outputs,
        original_outputs=forward.run_to_taps(fixed.original, fixed.original_stats, x, taps=taps, gather=gather)
        if taps
        else {},
    )


def _add_up(
    part_loss: Callable[..., Any], trained: Arrays, moving: Arrays, examples: Arrays, num_parts: int
) -> tuple[Arrays, Arrays, Arrays]:
    """Return metrics, moved statistics and gradients of a batch, run in parts one after the other."""
    differentiate = jax.grad(part_loss, has_aux=True)

    def run(moving: Arrays, part: Arrays) -> tuple[Arrays, tuple[Arrays, Arrays]]:
        grads, (metrics, moving) = differentiate(trained, moving, part)
        return moving, (metrics, grads)

    if num_parts == 1:
        moving, (metrics, grads) = run(moving, examples)
        return metrics, moving, grads
    size = examples["share"].shape[0]
    if size % num_parts:
        raise ValueError(f"a batch of {size} cannot be run in {num_parts} equal parts; change batch_size or num_parts")
    # Every device keeps the examples that it has: b ... -> parts b/parts ..., a part being every so many examples.
    parts = jax.tree.map(
        lambda array: array.reshape(size // num_parts, num_parts, *array.shape[1:]).swapaxes(0, 1), examples
    )

    def add(carry: Any, part: Arrays) -> tuple[Any, None]:
        moving, total = carry
        moving, found = run(moving, part)
        return (moving, jax.tree.map(jnp.add, total, found)), None

    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, moving, first)[1])
    (moving, (metrics, grads)), _ = jax.lax.scan(add, (moving, zeros), parts)
    return metrics, moving, grads
