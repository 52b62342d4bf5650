"""Config sections to function calls: a section is exactly the keyword arguments of one function."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from tljax.paths import did_you_mean

Result = TypeVar("Result")

# How a run is executed; no run is known by it.
EXECUTION = "execution"
_COMMON = ("seed", "cache_dir", "model", "data")
_PROBE = ("split", "features", "evaluate", "probe")
_PROBES = ("logistic", "ridge", "knn", "nearest_mean", "mlp", "few_shot")
_RECIPE = ("split", "groups", "optimizer", "schedule", "loss", "augment", "finetune")
_FINETUNE = (*_RECIPE, "evaluate")
_METHODS = ("phases", "lora", "mix", "regularise", "penalties", "relative_gradients")
# What each task needs of the config, and what it reads where there is such a section: a run directory is that of
# another config by these alone.
_NEEDED = {
    "extract": (*_COMMON, "features"),
    "probe": (*_COMMON, *_PROBE),
    "finetune": (*_COMMON, *_FINETUNE),
    "lr_find": (*_COMMON, *_RECIPE, "lr_find"),
    "select": ("seed", "cache_dir", "data", "split", "candidates", "select"),
    "soup": (*_COMMON, "split", "evaluate", "soup"),
    "explain": (*_COMMON, *_RECIPE),
    "transfer": (*_COMMON, *_PROBE, *_FINETUNE, "compare"),
}
_OPTIONAL = {
    "probe": _PROBES,
    "finetune": ("prefix", *_METHODS),
    "lr_find": ("prefix", *_METHODS),
    "explain": ("prefix", *_METHODS),
    "transfer": (*_PROBES, "prefix", "reading", *_METHODS),
}
_KNOWN = {EXECUTION, *(name for sections in (*_NEEDED.values(), *_OPTIONAL.values()) for name in sections)}


def select(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that a task reads.

    Raises:
        ValueError: the config has a section that no task knows, or lacks one that this task needs.
    """
    check_keys(f"the config of {task}", config, _KNOWN, _NEEDED[task])
    wanted = sections_read(task)
    return {name: value for name, value in config.items() if name in wanted}


def sections_read(task: str) -> tuple[str, ...]:
    """Return what a task reads of a config, needed or not."""
    return (*_NEEDED[task], *_OPTIONAL.get(task, ()), EXECUTION)


def call(section: str, config: Mapping[str, Any], function: Callable[..., Result], *args: Any, **given: Any) -> Result:
    """Call a function with a section of the config as keyword arguments.

    Args:
        section: name of the section, for messages.
        config: the whole config.
        function: called as `function(*args, **given, **config[section])`.
        args: its positional arguments.
        given: keyword arguments that are not the user's to set.

    Raises:
        ValueError: the section is missing, has a key that the function lacks, or lacks one that it needs.
    """
    if section not in config:
        raise ValueError(f"the config has no section {section!r}; it has {', '.join(sorted(config))}")
    values = dict(config[section])
    parameters = list(inspect.signature(function).parameters.values())[len(args) :]
    settable = {parameter.name for parameter in parameters} - set(given)
    needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty} - set(given)
    check_keys(f"config.{section}", values, settable, needed)
    return function(*args, **given, **values)


def call_optional(
    section: str, config: Mapping[str, Any], function: Callable[..., Result], otherwise: Result, *args: Any
) -> Result:
    """Call a function with a section of the config as `call` does, or return `otherwise` where there is none."""
    return call(section, config, function, *args) if section in config else otherwise


def check_keys(name: str, values: Collection[str], known: Collection[str], needed: Collection[str]) -> None:
    """Compare keys with those known and needed.

    Raises:
        ValueError: naming every unknown key with the nearest known one, and every missing key.
    """
    problems = [f"no key {key!r}{did_you_mean(key, known)}" for key in sorted(set(values) - set(known))]
    problems += [f"key {key!r} is missing" for key in sorted(set(needed) - set(values))]
    if problems:
        raise ValueError(f"{name}: " + "; ".join(problems) + f". Valid keys: {', '.join(sorted(known))}")
