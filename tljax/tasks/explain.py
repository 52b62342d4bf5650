"""Explain: what a config would train, at which rates, and what a step costs, before any training."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tljax.finetune.costs import count_flops, forward_flops, lower_step, stage_flops, step_batch
from tljax.finetune.groups import format_partition, make_groups
from tljax.finetune.optimizer import make_optimizer
from tljax.models.kernels import Kernels, describe
from tljax.paths import stage_of
from tljax.tasks.caching import settle_caches
from tljax.tasks.inputs import make_split, open_inputs
from tljax.tasks.plan import Plan
from tljax.tasks.relative import plan_run
from tljax.tasks.sections import call, select
from tljax.tasks.training import partition, step_body

NAME = "explain"

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: str | Path | None = None) -> dict[str, float]:
    """Print the partition and the costs of each phase; nothing is trained or written.

    A choice by relative gradients is made as the run would make it, which computes those of a few batches.

    Returns:
        Of the last phase: numbers of params, bytes of the optimizer state, and FLOPs by XLA's count.
    """
    del workdir
    config = select(NAME, config)
    inputs = open_inputs(config)
    split = call("split", config, make_split, inputs.source, config["seed"])
    config, _ = settle_caches(config, inputs, split)
    plans, norms = plan_run(config, inputs, split)
    if norms is not None:
        print("relative gradient norms, which the last phase follows:")
        print("\n".join(f"{stage:<12} {norm:>10.4g}" for stage, norm in norms.items()))
    results: dict[str, float] = {}
    for index, plan in enumerate(plans):
        print(f"phase {index}: {plan.num_steps} steps of {plan.recipe.batch_size} images")
        print(format_partition(partition(plan)))
        results = _explain(plan)
    return results


def _explain(plan: Plan) -> dict[str, float]:
    """Print what a phase costs, stage by stage, and return the totals."""
    size, shape = plan.recipe.batch_size, plan.inputs.pretrained.preprocess.shape
    net, stats = plan.forward.net, plan.inputs.pretrained.stats
    # The parts of a batch are run by a loop, whose body XLA counts once.
    size //= plan.recipe.num_parts
    plan = dataclasses.replace(plan, objective={**plan.objective, "num_parts": 1})
    batch = step_batch(plan.forward, size, shape)
    lowered, state = lower_step(step_body(plan), plan.initial, plan.groups, stats, batch)
    step, forward = count_flops(lowered), forward_flops(plan.forward, size, shape)
    _print_kernels(plan)
    by_stage, by_depth = stage_flops(net, size, shape), _flops_by_depth(plan, size, shape)
    print(f"{'stage':<12} {'BatchNorm':>10} {'forward':>9} {'step, if trained from here':>27}   GFLOPs an image")
    for stage, mode in norm_modes(plan).items():
        numbers = f"{by_stage[stage] / size / 1e9:>9.3f} {by_depth[stage] / size / 1e9:>27.3f}"
        print(f"{stage:<12} {mode:>10} {numbers}")
    trained, frozen = plan.groups.split(plan.initial)
    count = lambda arrays: float(sum(leaf.size for leaf in jax.tree.leaves(arrays)))  # noqa: E731
    num_bytes = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    return {
        "trained_params": count(trained),
        "frozen_params": count(frozen),
        "optimizer_mib": num_bytes(state.opt_state) / 2**20,
        "state_mib": num_bytes(state) / 2**20,
        "forward_gflops_per_image": forward / size / 1e9,
        "step_gflops_per_image": step / size / 1e9,
        "step_over_forward": step / forward,
    }


def _print_kernels(plan: Plan) -> None:
    """Say which ways the stages compute in that have a choice."""
    architecture: Any = plan.forward.net.architecture
    if architecture.kernel_stages:
        dtype = plan.forward.compute_dtype or "float32"
        print(f"kernels {describe(plan.forward.kernels or Kernels(), dtype, architecture.head_width)}")


def norm_modes(plan: Plan) -> dict[str, str]:
    """Return for each stage what its BatchNorm uses: the statistics of the "batch", "frozen" ones, or "-" for none."""
    with_statistics = {stage_of(path) for path in plan.inputs.pretrained.stats}
    modes = {True: "batch", False: "frozen"}
    return {
        stage: modes[stage in plan.forward.following] if stage in with_statistics else "-"
        for stage in plan.forward.net.stages
    }


def _flops_by_depth(plan: Plan, size: int, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the FLOPs of a step from images for every stage that the training might begin with.

    Everything from there on is trained, with the optimizer of the config. Counted before XLA optimises, which takes a
    tenth of the time.
    """
    net, flops = plan.forward.net, {}
    optimizer = {key: value for key, value in plan.config["optimizer"].items()}
    for stage in net.stages:
        groups = make_groups(net.shapes, net.stages, freeze=stage)
        forward = dataclasses.replace(plan.forward, training=groups.trained_stages, start=0, lora_scaling=None)
        tx = make_optimizer(groups, lambda step: 1e-3, **optimizer)
        variant = dataclasses.replace(plan, forward=forward, optimizer=tx, penalties=())
        batch = step_batch(forward, size, shape)
        lowered, _ = lower_step(step_body(variant), net.shapes, groups, plan.inputs.pretrained.stats, batch)
        flops[stage] = lowered.cost_analysis()["flops"]
    return flops
