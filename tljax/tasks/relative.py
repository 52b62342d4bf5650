"""Auto-RGN: let the pull of the gradient at each stage choose what trains, or how fast."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import rundir
from tljax.data.splits import Split
from tljax.finetune.losses import one_hot_targets
from tljax.finetune.relative_gradients import relative_gradient_norms
from tljax.finetune.step import model_inputs
from tljax.tasks.feed import open_feed
from tljax.tasks.inputs import Inputs
from tljax.tasks.plan import Plan, plan_phases

SECTION = "relative_gradients"
NORMS = "relative_gradients.json"

log = logging.getLogger(__name__)


def plan_run(config: Mapping[str, Any], inputs: Inputs, split: Split, workdir: Path | None = None) -> list[Plan]:
    """Plan the phases of a run; where the config wants the last one to follow relative gradients, measure these first.

    Args:
        config: of the run.
        inputs: of the run.
        split: its training part is what gradients are measured on.
        workdir: where the norms are kept, so that a resumed run has the same; None measures and keeps nothing.

    Raises:
        ValueError: the config does not fit, or there is no gradient before the head.
    """
    labels = inputs.source.labels[split.train]
    plans = plan_phases(config, inputs, labels)
    if SECTION not in config:
        return plans
    path = None if workdir is None else workdir / NORMS
    if path is not None and path.exists():
        stored = rundir.read_json(path)
        norms = {stage: stored[stage] for stage in plans[-1].forward.net.stages if stage in stored}
    else:
        norms = _measure(plans[-1], split)
        if path is not None:
            rundir.write_json(path, norms)
    log.info("relative gradient norms: %s", ", ".join(f"{stage} {norm:.3g}" for stage, norm in norms.items()))
    return plan_phases(config, inputs, labels, norms)


def _measure(plan: Plan, split: Split) -> dict[str, float]:
    """Return the relative gradient norm of each stage, of the mean loss over a few training batches."""
    num_batches = plan.config[SECTION]["num_batches"]
    pretrained, net = plan.inputs.pretrained, plan.forward.net
    feed = open_feed(dataclasses.replace(plan, forward=dataclasses.replace(plan.forward, start=0), bank=None))

    @jax.jit
    def grads_of(params: Any, batch: Any) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            scores, _ = net.apply(params, pretrained.stats, model_inputs(batch, net, pretrained.preprocess, 0))
            return jnp.mean(plan.objective["loss"](scores, one_hot_targets(batch["label"], net.num_classes)))

        return jax.grad(mean_loss)(params)

    params, total = dict(pretrained.params), None
    for batch in itertools.islice(feed.training(split.train, plan.config["seed"], 0), num_batches):
        arrays = {key: jnp.asarray(batch[key]) for key in ("image", "label")}
        grads = grads_of(params, arrays)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    norms = relative_gradient_norms(total or {}, params, net.stages)
    if not any(norms.values()):
        raise ValueError(
            f"config.{SECTION}: no gradient reaches the stages before the head, because a new head starts at zero; "
            'give it other values with config.model.head = dict(init="scaled")'
        )
    return norms
