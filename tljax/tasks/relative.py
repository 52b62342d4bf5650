"""Auto-RGN: let the pull of the gradient at each stage choose what trains, or how fast."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax import processes, rundir
from tljax.data.splits import Split
from tljax.finetune.losses import as_targets
from tljax.finetune.relative_gradients import relative_gradient_norms
from tljax.finetune.step import model_inputs
from tljax.tasks.feed import open_feed
from tljax.tasks.inputs import Inputs
from tljax.tasks.methods import RelativeGradients
from tljax.tasks.plan import Plan, plan_phases
from tljax.tasks.sections import call
from tljax.tasks.training import check_step

SECTION = "relative_gradients"
NORMS = "relative_gradients.json"

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """The plans of the phases of a run, and the norms that the last one follows; None where it follows none."""

    plans: list[Plan]
    norms: dict[str, float] | None


def plan_run(config: Mapping[str, Any], inputs: Inputs, split: Split, workdir: Path | None = None) -> Run:
    """Plan the phases of a run, and trace a step of each, so that whatever does not fit is refused here.

    Where the config wants the last phase to follow relative gradients, these are measured first. Nothing is written.

    Args:
        config: of the run.
        inputs: of the run.
        split: its training part is what gradients are measured on.
        workdir: a run that has kept its norms there goes on with the same; None measures anew.

    Raises:
        ValueError: the config does not fit, or there is no gradient before the head.
    """
    labels = inputs.source.labels[split.train]
    run = Run(plan_phases(config, inputs, labels), None)
    if run.plans[0].recipe.keep == "best" and not len(split.val):
        raise ValueError(
            "config.finetune.keep is 'best', by a metric of the validation part, and the split has no validation "
            "images; raise split.val_fraction, or keep 'last'"
        )
    for plan in run.plans:
        check_step(plan)
    if SECTION not in config:
        return run
    num_batches = call(SECTION, config, RelativeGradients).num_batches

    def norms_of_run() -> dict[str, float]:
        kept = _kept(workdir, inputs) if workdir is not None else None
        return kept or _measure(run.plans[-1], split, num_batches)

    norms = processes.on_first(norms_of_run)
    log.info("relative gradient norms: %s", ", ".join(f"{stage} {norm:.3g}" for stage, norm in norms.items()))
    following = Run(plan_phases(config, inputs, labels, norms), norms)
    check_step(following.plans[-1])
    return following


def _kept(workdir: Path, inputs: Inputs) -> dict[str, float] | None:
    """Return the norms of a run directory, if it has any, by depth; JSON has sorted them by name."""
    if not (workdir / NORMS).exists():
        return None
    stored = rundir.read_json(workdir / NORMS)
    return {stage: stored[stage] for stage in inputs.pretrained.net.stages if stage in stored}


def _measure(plan: Plan, split: Split, num_batches: int) -> dict[str, float]:
    """Return the relative gradient norm of each stage, of the mean loss over a few training batches."""
    pretrained, net = plan.inputs.pretrained, plan.forward.net
    feed = open_feed(dataclasses.replace(plan, forward=dataclasses.replace(plan.forward, start=0), bank=None)).alone()

    @jax.jit
    def grads_of(params: Any, batch: Any) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            scores, _ = net.apply(params, pretrained.stats, model_inputs(batch, net, pretrained.preprocess, 0))
            return jnp.mean(plan.objective["loss"](scores, as_targets(batch["label"], net.num_classes)))

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
