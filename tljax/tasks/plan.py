"""From a config to the phases of a fine-tuning run, before anything is computed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from tljax.data.augment import Augment
from tljax.data.bank import Bank
from tljax.data.sampling import UNIFORM, check_sampling
from tljax.finetune.forward import Forward
from tljax.finetune.groups import Groups
from tljax.finetune.mix import Mix
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.penalties import BSS, Penalty, make_penalties
from tljax.finetune.schedules import make_schedules
from tljax.models.net import Net
from tljax.models.noise import Regularise, stage_rates
from tljax.tasks.execution import execution_of
from tljax.tasks.inputs import Inputs
from tljax.tasks.methods import label_params, low_rank_deltas, make_loss
from tljax.tasks.recipe import Prefix, Recipe, phase_configs
from tljax.tasks.sections import call, call_optional
from tljax.weights import load


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One phase of a run.

    Args:
        config: of the phase.
        recipe: its `config.finetune`.
        inputs: data and pretrained net, at the image size of the phase.
        initial: the params before the run: those of the pretrained net, and low-rank deltas if there are any.
        groups: of these.
        forward: how the net runs.
        augment: of the images.
        bank: the views of each image whose prefix is stored; None where batches are images.
        num_steps: length.
        schedules: {label: learning rate as a function of the step of the phase}.
        optimizer: over the trained params.
        penalties: added to the loss.
        objective: other keyword arguments of `step.train_body`.
    """

    config: dict[str, Any]
    recipe: Recipe
    inputs: Inputs
    initial: dict[str, Any]
    groups: Groups
    forward: Forward
    augment: Augment
    bank: Bank | None
    num_steps: int
    schedules: dict[str, optax.Schedule]
    optimizer: optax.GradientTransformation
    penalties: tuple[Penalty, ...]
    objective: dict[str, Any]

    @property
    def start(self) -> str | int:
        """The first stage that the steps run."""
        return self.forward.start

    def averaged_stats(self, stats: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the statistics that are averaged beside the trained params, or None where there is no average."""
        if self.recipe.average_decay is None:
            return None
        return {path: stat for path, stat in stats.items() if self.forward.moves(path)}

    def learning_rate(self, step: int) -> Any:
        """Return the rate of the head at a step of the phase, or of another label where the head is frozen."""
        label = "head" if "head" in self.schedules else next(iter(self.schedules))
        return self.schedules[label](step)


def plan_phases(
    config: Mapping[str, Any], inputs: Inputs, labels: Any, norms: Mapping[str, float] | None = None
) -> list[Plan]:
    """Say what each phase of a run does.

    Args:
        config: of the run.
        inputs: of the run.
        labels: of the training images; their number gives the lengths, and their classes the weights.
        norms: relative gradient norms of the stages, which `config.relative_gradients` lets the last phase follow.

    Raises:
        ValueError: a section does not fit, or phases do not fit one another.
    """
    configs = phase_configs(config)
    plans = [_plan(phase, inputs, labels, norms if phase is configs[-1] else None) for phase in configs]
    moved: set[str] = set()
    for index, plan in enumerate(plans):
        net = plan.forward.net
        early = sorted(stage for stage in moved if net.depth(stage) < net.depth(plan.start))
        if early:
            raise ValueError(
                f"config.phases[{index}]: {', '.join(early)} are before {plan.start!r} and are trained by an earlier "
                "phase, so their activations cannot be computed beforehand; set its cache to 'never'"
            )
        moved |= set(plan.groups.trained_stages)
    return plans


def _plan(config: dict[str, Any], inputs: Inputs, labels: Any, norms: Mapping[str, float] | None) -> Plan:
    recipe = call("finetune", config, Recipe)
    inputs = at_image_size(inputs, config["model"])
    pretrained, net = inputs.pretrained, inputs.pretrained.net
    deltas, scaling = call_optional("lora", config, low_rank_deltas, ({}, None), pretrained.params, config["seed"])
    initial = {**pretrained.params, **deltas}
    groups = label_params(config, initial, net.stages, norms)
    num_steps = recipe.num_steps(recipe.epochs, len(labels))
    schedules = call(
        "schedule", config, make_schedules, num_steps, tuple(groups.multipliers), batch_size=recipe.batch_size
    )
    forward = _forward(config, recipe, net, groups, scaling)
    _check_sampling(recipe.sampling, inputs)
    penalties = make_penalties(net.stages, config["penalties"]) if "penalties" in config else ()
    _check_penalties(penalties, forward, recipe)
    augment, mix = call("augment", config, Augment), call_optional("mix", config, Mix, None)
    bank = _stored_views(config, recipe, augment, mix)
    objective = call("loss", config, make_loss, labels, inputs.source)
    # A number out of range is found when a loss is traced.
    scores = jax.ShapeDtypeStruct((1, inputs.num_classes), "float32")
    jax.eval_shape(objective["loss"], scores, scores)
    return Plan(
        config=config,
        recipe=recipe,
        inputs=inputs,
        initial=initial,
        groups=groups,
        forward=forward,
        augment=augment,
        bank=bank,
        num_steps=num_steps,
        schedules=schedules,
        optimizer=call("optimizer", config, make_optimizer, groups, schedules),
        penalties=penalties,
        objective={
            **objective,
            "mix": mix,
            "seed": config["seed"],
            "average_decay": recipe.average_decay,
            "num_parts": recipe.num_parts,
        },
    )


def _forward(config: dict[str, Any], recipe: Recipe, net: Net, groups: Groups, scaling: float | None) -> Forward:
    """Say how the net runs."""
    start = groups.train_from if recipe.is_cached else 0
    if recipe.is_cached and net.depth(start) == 0:
        raise ValueError("finetune.cache: nothing is frozen, so there is no prefix; set it to 'never'")
    forward = Forward(
        net=net,
        training=groups.trained_stages,
        adapting=net.stages if recipe.adapt_statistics else (),
        freeze_statistics=recipe.freeze_statistics,
        start=start,
        lora_scaling=scaling,
        regularise=call_optional("regularise", config, Regularise, None),
        compute_dtype=None if recipe.compute_dtype == "float32" else recipe.compute_dtype,
        use_remat=recipe.use_remat,
        kernels=execution_of(config).chosen_kernels,
    )
    _check_regularise(forward)
    return forward


def _check_sampling(sampling: str, inputs: Inputs) -> None:
    check_sampling(sampling)
    if inputs.source.is_multi_label and sampling != UNIFORM:
        raise ValueError(
            f"config.finetune.sampling is {sampling!r}, by the class of an image, and in {inputs.source.name!r} "
            f"an image has any number of them; set it to {UNIFORM!r}"
        )


def _check_regularise(forward: Forward) -> None:
    """Refuse noise that no stage would draw: a run with it would be one without, under another name."""
    if forward.regularise is None:
        return
    rates = stage_rates(forward.net.architecture, forward.regularise)
    for name in ("dropout", "stochastic_depth"):
        if not getattr(forward.regularise, name):
            continue
        able = [stage for stage, shares in rates.items() if shares[name]]
        if not able:
            what = "residual branches" if name == "stochastic_depth" else "features before a classifier"
            raise ValueError(f"config.regularise.{name} leaves out {what}, and this network has none; set it to 0")
        if not {*able} & {*forward.training}:
            raise ValueError(
                f"config.regularise.{name} is drawn by trained stages only, and those that it is for are frozen: "
                f"{', '.join(able)}; train one of them, or set it to 0"
            )


def _stored_views(config: dict[str, Any], recipe: Recipe, augment: Augment, mix: Mix | None) -> Bank | None:
    """Return the views whose prefix is to be stored; None where batches are images."""
    if not recipe.is_cached:
        return None
    if "prefix" not in config:
        raise ValueError("finetune.cache needs a section config.prefix, such as dict(dtype=..., batch_size=...)")
    if mix is not None:
        raise ValueError(
            "finetune.cache stores activations of single images, and config.mix blends images; set it to 'never', or "
            "leave mix out"
        )
    return dataclasses.replace(call("prefix", config, Prefix).views(augment), seed=config["seed"])


def _check_penalties(penalties: tuple[Penalty, ...], forward: Forward, recipe: Recipe) -> None:
    """Find what would only show when the first step is traced."""
    net, problems = forward.net, []
    first = min(forward.training, key=net.depth)
    for tap in dict.fromkeys(tap for penalty in penalties for tap in penalty.taps):
        if net.depth(tap) < net.depth(first):
            problems.append(
                f"what {tap} gives cannot change, as the first trained stage is {first!r}; choose that or a later one"
            )
    size = recipe.batch_size // recipe.num_parts
    for penalty in penalties:
        if isinstance(penalty, BSS) and penalty.num_smallest > size:
            held = "a batch" if recipe.num_parts == 1 else "a part of a batch"
            problems.append(f"bss: num_smallest is {penalty.num_smallest}, and {held} has {size} images; lower it")
    if problems:
        raise ValueError("config.penalties: " + "; ".join(problems))


def at_image_size(inputs: Inputs, model: Mapping[str, Any]) -> Inputs:
    """Return the inputs with the pretrained net of `config.model`, which differs at most in its image size."""
    wanted, size = model.get("image_size", None), inputs.pretrained.preprocess.size
    if wanted is None or _sides(wanted) == _sides(size):
        return inputs
    pretrained = call("model", {"model": model}, load, num_classes=inputs.num_classes)
    return dataclasses.replace(inputs, pretrained=pretrained)


def _sides(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
