"""Explain: what a config would train, and what a step would cost, before any training."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax.finetune.groups import format_partition, make_groups, make_optimizer, partition_table
from tljax.finetune.schedules import warmup_cosine
from tljax.finetune.step import TrainState, train_body
from tljax.tasks.finetune import Recipe
from tljax.tasks.inputs import open_inputs
from tljax.tasks.sections import call, select

NAME = "explain"

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Print the partition and the cost of the step, from the compiled program; nothing is trained or written."""
    del workdir
    config = select(NAME, config)
    inputs = open_inputs(config)
    pretrained, net = inputs.pretrained, inputs.pretrained.net
    recipe = call("finetune", config, Recipe)
    groups = call("groups", config, make_groups, pretrained.params, net.stages)
    schedule = warmup_cosine(learning_rate=recipe.learning_rate, warmup_steps=0, num_steps=1)
    optimizer = call("optimizer", config, make_optimizer, groups, schedule)
    rows = partition_table(
        groups,
        pretrained.params,
        learning_rate=recipe.learning_rate,
        weight_decay=config["optimizer"]["weight_decay"],
    )
    print(format_partition(rows))
    trained, frozen = groups.split(net.shapes)
    opt_state = jax.eval_shape(optimizer.init, trained)
    state = TrainState(
        trained=trained, stats=net.stat_shapes, opt_state=opt_state, step=jax.ShapeDtypeStruct((), jnp.int32)
    )
    size = recipe.batch_size
    images = jax.ShapeDtypeStruct((size, *pretrained.preprocess.shape), jnp.float32)
    forward = jax.jit(lambda params, stats, x: net.apply(params, stats, x)[0])
    forward_flops = _flops(forward.lower(net.shapes, net.stat_shapes, images))

    start = groups.train_from if recipe.use_prefix_cache else 0
    key, inputs_of_step = _step_inputs(pretrained, start, images)
    body = partial(
        train_body,
        net=net,
        tx=optimizer,
        preprocess=pretrained.preprocess,
        train_from=groups.train_from,
        start=start,
    )
    running = {path: leaf for path, leaf in frozen.items() if net.depth(path.split("/")[0]) >= net.depth(start)}
    step_flops = _flops(
        jax.jit(body).lower(state, running, {"label": jax.ShapeDtypeStruct((size,), jnp.int32), key: inputs_of_step})
    )
    return {
        "trained_params": float(sum(leaf.size for leaf in trained.values())),
        "frozen_params": float(sum(leaf.size for leaf in frozen.values())),
        "optimizer_mib": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(opt_state)) / 2**20,
        "forward_gflops_per_image": forward_flops / size / 1e9,
        "step_gflops_per_image": step_flops / size / 1e9,
        "step_over_forward": step_flops / forward_flops,
    }


def _step_inputs(pretrained: Any, start: str | int, images: jax.ShapeDtypeStruct) -> tuple[str, Any]:
    """Shape of what a step reads: bytes, or the activations at `start`."""
    net = pretrained.net
    if net.depth(start) == 0:
        return "image", jax.ShapeDtypeStruct(images.shape, jnp.uint8)
    activations = jax.eval_shape(lambda p, s, x: net.apply(p, s, x, stop=start)[0], net.shapes, net.stat_shapes, images)
    return "activation", activations


def _flops(lowered: Any) -> float:
    return lowered.compile().cost_analysis()["flops"]
