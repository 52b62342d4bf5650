"""Whether the phases of a run train from a stored prefix, where the config leaves it to what that costs."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tljax import processes, rundir
from tljax.data.splits import Split
from tljax.features.shards import row_bytes
from tljax.features.store import META, memory_bytes, open_store
from tljax.finetune.costs import lower_step, stage_inputs, step_batch
from tljax.tasks.feed import locate_prefix
from tljax.tasks.inputs import Inputs
from tljax.tasks.plan import Plan, plan_phases
from tljax.tasks.recipe import Recipe, phase_configs
from tljax.tasks.sections import call
from tljax.tasks.speeds import Speeds, free_bytes, measure_speeds
from tljax.tasks.training import step_body

# In the run directory.
CACHES = "cache.json"

log = logging.getLogger(__name__)


class Settled(NamedTuple):
    """A config in which no phase leaves its cache open, and a record of each phase that did."""

    config: dict[str, Any]
    decisions: list[dict[str, Any]]


def settle_caches(config: Mapping[str, Any], inputs: Inputs, split: Split, workdir: Path | None = None) -> Settled:
    """Decide for every phase with the cache "auto" what costs less, and print why; nothing is written.

    Args:
        config: of a run.
        inputs: of the run.
        split: its training part gives the lengths.
        workdir: a run that has kept its decisions there goes on with them; None decides anew.

    Raises:
        ValueError: the config does not fit, or a cache that is "always" wanted is larger than its budget.
    """
    caches = [call("finetune", phase, Recipe).cache for phase in phase_configs(config)]

    def decide() -> list[dict[str, Any]]:
        if workdir is not None and (workdir / CACHES).exists():
            return rundir.read_json(workdir / CACHES)
        return _decide(config, inputs, split, caches)

    # Other processes would measure other speeds.
    decisions = processes.on_first(decide)
    for decision in decisions:
        caches[decision["phase"]] = decision["cache"]
        log.info("prefix cache of phase %d: %s, %s", decision["phase"], decision["cache"], decision["reason"])
    return Settled(_with_caches(config, caches), decisions)


def _decide(config: Mapping[str, Any], inputs: Inputs, split: Split, caches: list[str]) -> list[dict[str, Any]]:
    """Go through the phases in order: whether one can use a cache depends on what those before it train."""
    labels = inputs.source.labels[split.train]
    chosen = ["never" if cache == "auto" else cache for cache in caches]
    # What is wrong with the config, whatever is decided.
    from_images = plan_phases(_with_caches(config, chosen), inputs, labels)
    for index, plan in enumerate(from_images):
        if plan.bank is not None:
            _check_budget(plan, index)
    decisions = []
    for index, cache in enumerate(caches):
        if cache != "auto":
            continue
        caches_then = [*chosen[:index], "always", *chosen[index + 1 :]]
        decision = _decide_phase(_with_caches(config, caches_then), inputs, split, index, from_images[index])
        chosen[index] = decision["cache"]
        decisions.append({"phase": index, **decision})
    return decisions


def _decide_phase(
    config: dict[str, Any], inputs: Inputs, split: Split, index: int, from_images: Plan
) -> dict[str, Any]:
    """Decide about a phase whose cache `config` turns on."""
    is_last = index == len(phase_configs(config)) - 1
    if is_last and "relative_gradients" in config:
        return {"cache": "never", "reason": "as relative gradients choose where this phase begins to train"}
    try:
        stored = plan_phases(config, inputs, inputs.source.labels[split.train])[index]
    except ValueError as error:
        # From images the same config fits.
        return {"cache": "never", "reason": f"as there can be none: {error}"}
    costs = estimate(from_images, stored, split, measure_speeds(config["cache_dir"]), is_last=is_last)
    return {
        "cache": "always" if costs.problem is None else "never",
        "reason": costs.describe(),
        **dataclasses.asdict(costs),
    }


def _check_budget(plan: Plan, index: int) -> None:
    size, budget = prefix_bytes(plan), plan.recipe.cache_budget_gb * 1e9
    if size > budget:
        raise ValueError(
            f"the stored prefix of phase {index} takes {size / 1e9:.3g} GB, and config.finetune.cache_budget_gb is "
            f"{plan.recipe.cache_budget_gb:g}; raise it, or set cache to 'never' or 'auto'"
        )


def _with_caches(config: Mapping[str, Any], caches: list[str]) -> dict[str, Any]:
    settled = {**config, "finetune": {**config["finetune"], "cache": caches[0]}}
    if "phases" in config:
        phases = zip(config["phases"], caches, strict=True)
        settled["phases"] = [{**phase, "cache": cache} for phase, cache in phases]
    return settled


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a phase costs from images and from a stored prefix, by XLA's count of FLOPs and measured speeds.

    Args:
        prefix_gflops: of the frozen prefix, an image.
        step_gflops: of a step from images, an image.
        shown: images that the phase trains on, validates and tests, each as often as it comes.
        computed: images and views whose prefix is computed for the store; 0 where it is there.
        store_gb: size of the store.
        budget_gb: what it may take.
        free_gb: what the disk has left.
        images_s: estimated seconds for the prefix of all images that are shown.
        stored_s: estimated seconds to compute, write and read the store.
    """

    prefix_gflops: float
    step_gflops: float
    shown: int
    computed: int
    store_gb: float
    budget_gb: float
    free_gb: float
    images_s: float
    stored_s: float

    @property
    def problem(self) -> str | None:
        """Say why the store does not pay; None where it does."""
        if self.store_gb > self.budget_gb:
            return "over config.finetune.cache_budget_gb"
        if self.computed and self.store_gb > self.free_gb:
            return "the disk is too full"
        if self.stored_s >= self.images_s:
            return "it would take longer"
        return None

    def describe(self) -> str:
        """Return the decision and its numbers in a line."""
        return (
            f"as {self.problem or 'it pays'}: the prefix is {self.prefix_gflops:.3g} of the {self.step_gflops:.3g} "
            f"GFLOPs of a step and image; computed {self.computed:,} times in place of {self.shown:,}, "
            f"{self.stored_s:.3g} s in place of {self.images_s:.3g} s; {self.store_gb:.3g} GB of a budget of "
            f"{self.budget_gb:g}, {self.free_gb:.3g} GB free"
        )


def estimate(from_images: Plan, stored: Plan, split: Split, speeds: Speeds, *, is_last: bool) -> Costs:
    """Estimate a phase both ways; decoding, which images need each time, is not counted.

    Args:
        from_images: the phase without a store.
        stored: the phase with one.
        split: of the run.
        speeds: of this machine.
        is_last: the phase is the one after which the test images are predicted.
    """
    recipe, num_images = stored.recipe, len(stored.inputs.source)
    step, rest = (step_flops(plan)[0] for plan in (from_images, stored))
    num_evaluations = math.ceil(stored.num_steps / recipe.evaluate_every)
    shown = stored.num_steps * recipe.batch_size + num_evaluations * len(split.val) + is_last * len(split.test)
    folder, spec, _, settings = locate_prefix(stored)
    is_there = (folder / META).exists() and open_store(folder, spec).is_complete
    computed, size = 0 if is_there else num_images * settings["views"], prefix_bytes(stored)
    read = shown * size // (num_images * settings["views"])
    # What fits into memory comes from the disk once.
    from_disk = read if size > memory_bytes() else min(read, size)
    seconds_an_image = (step - rest) / speeds.flops_per_s
    transfer_s = ((0 if is_there else size) + from_disk) / speeds.disk_bytes_per_s
    return Costs(
        prefix_gflops=(step - rest) / 1e9,
        step_gflops=step / 1e9,
        shown=shown,
        computed=computed,
        store_gb=size / 1e9,
        budget_gb=recipe.cache_budget_gb,
        free_gb=free_bytes(stored.config["cache_dir"]) / 1e9,
        images_s=shown * seconds_an_image,
        stored_s=computed * seconds_an_image + transfer_s,
    )


def train_tflops(plans: Sequence[Plan]) -> dict[str, float]:
    """Return {"train_tflops": those of all steps of a run}, from where they begin: without a stored prefix.

    Nothing where JAX was told to leave CPUs out, as it is for them that they are counted.
    """
    # Its flags are attributes that JAX makes when it is imported.
    config: Any = jax.config
    platforms = config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        return {}
    flops = sum(step_flops(plan)[0] * plan.num_steps * plan.recipe.batch_size for plan in plans)
    return {"train_tflops": flops / 1e12}


def prefix_bytes(plan: Plan) -> int:
    """Return the size of the store of a phase that has a bank."""
    assert plan.bank is not None
    net, shape = plan.forward.net, plan.inputs.pretrained.preprocess.shape
    row = stage_inputs(net, 1, shape)[str(plan.start)]
    stored = jax.ShapeDtypeStruct(row.shape[1:], plan.config["prefix"]["dtype"])
    return len(plan.inputs.source) * plan.bank.views * row_bytes(stored)


def step_flops(plan: Plan) -> tuple[float, Any]:
    """Count the FLOPs of a step for one image, before XLA optimises, which takes a tenth of the time.

    Returns:
        The FLOPs, and the shapes of the train state.
    """
    # The parts of a batch are run by a loop, whose body is counted once.
    size = plan.recipe.batch_size // plan.recipe.num_parts
    plan = dataclasses.replace(plan, objective={**plan.objective, "num_parts": 1})
    pretrained = plan.inputs.pretrained
    batch = step_batch(plan.forward, size, pretrained.preprocess.shape)
    lowered, state = lower_step(step_body(plan), plan.initial, plan.groups, pretrained.stats, batch)
    return lowered.cost_analysis()["flops"] / size, state
