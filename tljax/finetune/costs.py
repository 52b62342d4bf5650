"""What a training step costs, by XLA's own count, and whether there can be one, from shapes alone: nothing runs.

All is counted of the plain formulas, lowered for CPUs: XLA does not look into the kernels of others.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tljax.devices import on_cpu, shapes_on, spread
from tljax.finetune.devices import make_train_step
from tljax.finetune.forward import Forward
from tljax.finetune.state import Arrays, Fixed, init_state
from tljax.finetune.step import originals
from tljax.models.kernels import PLAIN_FORMULAS
from tljax.models.net import Net
from tljax.paths import stage_of

Shapes = dict[str, jax.ShapeDtypeStruct]


def shapes_of(arrays: Mapping[str, Any]) -> Shapes:
    """Return the shapes and dtypes of arrays."""
    return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in arrays.items()}


def stage_inputs(net: Net, batch_size: int, image_shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of what each stage reads."""
    x = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    shapes = {}
    for index, stage in enumerate(net.stages):
        shapes[stage] = x
        run = functools.partial(net.apply, start=index, stop=index + 1)
        x = jax.eval_shape(run, net.shapes, net.stat_shapes, x)[0]
    return shapes


def stage_flops(net: Net, batch_size: int, image_shape: tuple[int, ...]) -> dict[str, float]:
    """Return the FLOPs of the forward pass of each stage in inference mode; a multiply-add is two."""
    known: dict[Any, float] = {}
    flops = {}
    for stage, x in stage_inputs(net, batch_size, image_shape).items():
        # The blocks of a network repeat.
        shapes = sorted((path.split("/", 1)[1], shape) for path, shape in net.stage_shapes(stage).items())
        key = (stage.rstrip("0123456789"), tuple(shapes), x.shape)
        if key not in known:
            run = functools.partial(net.apply, start=stage, stop=net.depth(stage) + 1, kernels=PLAIN_FORMULAS)
            known[key] = count_flops(lower(run, net.shapes, net.stat_shapes, x))
        flops[stage] = known[key]
    return flops


def forward_flops(forward: Forward, batch_size: int, image_shape: tuple[int, ...]) -> float:
    """Return the FLOPs of one forward pass of the whole net."""
    net = forward.net
    x = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    run = functools.partial(net.apply, compute_dtype=forward.compute_dtype, kernels=PLAIN_FORMULAS)
    return count_flops(lower(run, net.shapes, net.stat_shapes, x))


def lower(run: Any, *shapes: Any) -> Any:
    """Trace and lower a function, so that XLA can count its FLOPs.

    Raises:
        ValueError: JAX was told to leave CPUs out.
    """
    with on_cpu():
        return jax.jit(run).lower(*shapes)


def lower_step(
    body: functools.partial, initial: Mapping[str, Any], groups: Any, stats: Mapping[str, Any], batch: Arrays
) -> Any:
    """Trace and lower one training step from shapes alone, for `count_flops`.

    Args:
        body: `train_body` with its keywords bound.
        initial: all params, or their shapes.
        groups: which of them are trained.
        stats: all statistics, or their shapes.
        batch: shapes of a batch.
    """
    plain = dataclasses.replace(body.keywords["forward"], kernels=PLAIN_FORMULAS)
    body = functools.partial(body.func, **{**body.keywords, "forward": plain})
    state, fixed = _step_shapes(body, initial, groups, stats)
    return lower(body, state, fixed, batch), state


def lower_step_on(
    mesh: Mesh, body: functools.partial, initial: Mapping[str, Any], groups: Any, stats: Mapping[str, Any],
    batch: Arrays,
) -> Any:  # fmt: skip
    """Trace and lower one training step for the devices of a mesh, from shapes alone.

    The other arguments are those of `lower_step`.
    """
    state, fixed = _step_shapes(body, initial, groups, stats)
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread(mesh)), batch)
    step: Any = make_train_step(body, mesh)
    return step.lower(shapes_on(state, mesh), shapes_on(fixed, mesh), rows)


def trace_step(
    body: functools.partial, initial: Mapping[str, Any], groups: Any, stats: Mapping[str, Any], batch: Arrays
) -> None:
    """Trace one training step, so that losses, penalties and mixes can refuse the shapes that they would get.

    The arguments are those of `lower_step`.
    """
    jax.eval_shape(body, *_step_shapes(body, initial, groups, stats), batch)


def _step_shapes(
    body: functools.partial, initial: Mapping[str, Any], groups: Any, stats: Mapping[str, Any]
) -> tuple[Any, Fixed]:
    """Return the shapes of the state before the first step, and of what the step only reads."""
    forward: Forward = body.keywords["forward"]
    net, first = forward.net, forward.net.depth(forward.start)
    trained, frozen = groups.split(shapes_of(initial))
    frozen = {path: leaf for path, leaf in frozen.items() if net.depth(stage_of(path)) >= first}
    averaged = {path: leaf for path, leaf in shapes_of(stats).items() if forward.moves(path)}
    keeps_average = body.keywords.get("average_decay") is not None
    state = jax.eval_shape(
        functools.partial(init_state, tx=body.keywords["tx"]), trained, shapes_of(stats),
        averaged_stats=averaged if keeps_average else None,
    )  # fmt: skip
    original, original_stats = originals(
        forward, trained, body.keywords.get("penalties", ()), net.shapes, net.stat_shapes
    )
    return state, Fixed(params=frozen, original=original, original_stats=original_stats)


def step_batch(forward: Forward, batch_size: int, image_shape: tuple[int, ...]) -> Arrays:
    """Return the shapes of a batch as the steps read it."""
    batch: Arrays = {"label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}
    if forward.net.depth(forward.start) == 0:
        return {**batch, "image": jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8)}
    return {**batch, "activation": stage_inputs(forward.net, batch_size, image_shape)[str(forward.start)]}


def count_flops(lowered: Any) -> float:
    """Return XLA's count for a program, compiled."""
    return lowered.compile().cost_analysis()["flops"]
