"""Learning rates as pure functions of the step: one schedule a label."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from tljax.finetune.groups import BODY, HEAD
from tljax.finetune.schedule_shapes import SCHEDULES, cosine
from tljax.paths import did_you_mean

SCALINGS: dict[str, Callable[[float], float]] = {"linear": float, "sqrt": math.sqrt}
# What `make_schedules` gives the shapes itself.
_GIVEN = ("learning_rate", "warmup_steps", "num_steps")


def warmup_cosine(*, learning_rate: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Rise linearly to `learning_rate`, then fall to 0 along half a cosine; see `cosine`."""
    return cosine(learning_rate=learning_rate, warmup_steps=warmup_steps, num_steps=num_steps, final_fraction=0.0)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What `make_schedules` is told of one label."""

    name: str
    learning_rate: float
    warmup_fraction: float
    arguments: Mapping[str, Any] | None
    reference_batch_size: int | None
    scaling: str


def make_schedules(
    num_steps: int,
    labels: Collection[str],
    *,
    name: str,
    learning_rate: float,
    warmup_fraction: float,
    arguments: Mapping[str, Any] | None = None,
    by_label: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    reference_batch_size: int | None = None,
    scaling: str = "linear",
) -> dict[str, optax.Schedule]:
    """Return the learning rate of each label as a function of the step.

    Args:
        num_steps: of the whole run.
        labels: the trained labels in use, `Groups.multipliers`; multipliers are not in the schedules.
        name: of `SCHEDULES`: "constant", "cosine", "linear", "step", "one_cycle" or "wsd".
        learning_rate: the highest of the run, at the reference batch size.
        warmup_fraction: share of the steps, in [0, 1), in which the rate rises linearly; rounded to steps.
        arguments: further ones of the function of that name.
        by_label: {label: settings} that take the place of those above for one label; a key that it does not give has
            the value above, `arguments` as a whole. "body" and "head" may be here even where all of them is frozen.
        batch_size: images a step.
        reference_batch_size: that the rate was chosen for: it is multiplied by `batch_size / reference_batch_size`;
            None does not.
        scaling: "linear", or "sqrt" for the root of that ratio.

    Raises:
        ValueError: an unknown name, argument, label or setting, or a number out of range.

    Source:
        Linear scaling: Goyal et al. 2017, arXiv:1706.02677, section 2.1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, wanted at least 1")
    section = _Settings(
        name=name,
        learning_rate=learning_rate,
        warmup_fraction=warmup_fraction,
        arguments=arguments,
        reference_batch_size=reference_batch_size,
        scaling=scaling,
    )
    own = by_label or {}
    known = {*labels, BODY, HEAD}
    _refuse_unknown("by_label", "label", own, known)
    fields = [field.name for field in dataclasses.fields(_Settings)]
    for label, settings in own.items():
        _refuse_unknown(f"by_label[{label!r}]", "setting", settings, fields)
    # Those of a frozen label are checked too.
    every = {
        label: _schedule(dataclasses.replace(section, **own.get(label, {})), num_steps, batch_size)
        for label in {**dict.fromkeys(labels), **own}
    }
    return {label: every[label] for label in labels}


def _schedule(settings: _Settings, num_steps: int, batch_size: int | None) -> optax.Schedule:
    if settings.name not in SCHEDULES:
        hint = did_you_mean(settings.name, SCHEDULES)
        raise ValueError(f"no schedule {settings.name!r}{hint}; known: {', '.join(SCHEDULES)}")
    function, arguments = SCHEDULES[settings.name], settings.arguments or {}
    settable = [parameter for parameter in inspect.signature(function).parameters if parameter not in _GIVEN]
    _refuse_unknown(f"schedule {settings.name!r}", "argument", arguments, settable)
    if not settings.learning_rate > 0 or not 0 <= settings.warmup_fraction < 1:
        raise ValueError(
            f"learning_rate is {settings.learning_rate} and warmup_fraction {settings.warmup_fraction}, "
            "wanted above 0, and 0 <= warmup_fraction < 1"
        )
    return function(
        learning_rate=settings.learning_rate * _batch_factor(settings, batch_size),
        warmup_steps=round(settings.warmup_fraction * num_steps),
        num_steps=num_steps,
        **arguments,
    )


def _batch_factor(settings: _Settings, batch_size: int | None) -> float:
    reference = settings.reference_batch_size
    if settings.scaling not in SCALINGS:
        hint = did_you_mean(settings.scaling, SCALINGS)
        raise ValueError(f"no scaling {settings.scaling!r}{hint}; known: {', '.join(SCALINGS)}")
    if reference is None:
        return 1.0
    if batch_size is None or batch_size < 1 or reference < 1:
        raise ValueError(f"batch_size is {batch_size} and reference_batch_size {reference}, wanted at least 1 each")
    return SCALINGS[settings.scaling](batch_size / reference)


def _refuse_unknown(where: str, what: str, given: Collection[str], known: Collection[str]) -> None:
    problems = [f"no {what} {name!r}{did_you_mean(name, known)}" for name in sorted(set(given) - set(known))]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}; known: {', '.join(sorted(known)) or 'none'}")
