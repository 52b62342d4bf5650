"""What the sections of a config may hold, and what of them makes a difference, before any data is opened."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from tljax import plain
from tljax.data.augment import Augment
from tljax.data.sources import source_opener
from tljax.finetune.groups import make_groups
from tljax.finetune.mix import Mix
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.schedules import make_schedules
from tljax.models.noise import Regularise
from tljax.tasks.evaluation import evaluate
from tljax.tasks.execution import Execution, identity_of
from tljax.tasks.inputs import make_split
from tljax.tasks.lr_find import Sweep
from tljax.tasks.methods import RelativeGradients, low_rank_deltas, make_loss
from tljax.tasks.probe import PROBES, Probes
from tljax.tasks.recipe import Prefix, Recipe, phase_configs
from tljax.tasks.sections import call, check_keys, sections_read, select
from tljax.weights import load


class Taker(NamedTuple):
    """Who takes a section as keyword arguments, and which arguments are not the section's."""

    function: Callable[..., Any]
    given: tuple[str, ...] = ()


# Of the sections that are the keyword arguments of one function, whatever the rest of the config says.
_TAKERS = {
    "model": Taker(load, ("num_classes",)),
    "split": Taker(make_split, ("source", "run_seed")),
    "evaluate": Taker(evaluate, ("source", "indices", "probabilities")),
    "groups": Taker(make_groups, ("params", "stages")),
    "optimizer": Taker(make_optimizer, ("groups", "schedules")),
    "schedule": Taker(make_schedules, ("num_steps", "labels", "batch_size")),
    "loss": Taker(make_loss, ("labels", "source")),
    "lora": Taker(low_rank_deltas, ("params", "seed")),
    "augment": Taker(Augment),
    "mix": Taker(Mix),
    "regularise": Taker(Regularise),
    "relative_gradients": Taker(RelativeGradients),
    "finetune": Taker(Recipe),
    "prefix": Taker(Prefix),
    "lr_find": Taker(Sweep),
    "probe": Taker(Probes),
    "execution": Taker(Execution),
    **{method: Taker(function, ("data",)) for method, function in PROBES.items()},
}


def known_fields(task: str, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what a config of a task may have: its sections, and the keys that they may have.

    Args:
        task: a name.
        config: says which data source there is; keys of sections that are checked elsewhere are those that it has.
    """
    found = {}
    for name in sections_read(task):
        taker, section = _taker(name, config), config.get(name)
        if taker is not None:
            found[name] = list(_settable(taker)) + (["name"] if name == "data" else [])
        else:
            found[name] = list(section) if isinstance(section, Mapping) else []
    return found


def check_config(task: str, config: Mapping[str, Any]) -> None:
    """Find what is wrong with a config as far as that shows without data and weights.

    Raises:
        ValueError: a section or key that there is not, one that is missing, or a value out of range; all of them.
    """
    chosen, problems = select(task, config), []
    for name, section in chosen.items():
        taker = _taker(name, chosen)
        if taker is None:
            continue
        values = {key: value for key, value in section.items() if (name, key) != ("data", "name")}
        try:
            function: Any = taker.function
            if is_dataclass(taker.function):
                call(name, {name: values}, function)
            else:
                parameters = _settable(taker)
                needed = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
                check_keys(f"config.{name}", values, parameters, needed)
        except (ValueError, TypeError) as error:
            problems.append(str(error) if isinstance(error, ValueError) else f"config.{name}: {error}")
    if not problems and "finetune" in chosen and "phases" in chosen:
        for phase in phase_configs(chosen):
            call("finetune", phase, Recipe)
    if problems:
        raise ValueError("; ".join(problems))


def fingerprint_of(task: str, config: Mapping[str, Any]) -> str:
    """Hash what a run is known by: two configs that compute the same, as far as the config alone can tell, are one.

    What a task does not read is left out, and so are keys that say what would hold without them, and the settings of a
    stored prefix where nothing is stored.
    """
    chosen = plain.as_read(identity_of(select(task, config)))
    for name, section in list(chosen.items()):
        taker = _taker(name, chosen)
        if taker is not None:
            chosen[name] = _without_defaults(section, taker)
    if "finetune" in chosen and "prefix" in chosen:
        caches = [phase["finetune"]["cache"] for phase in phase_configs(chosen)]
        if set(caches) == {"never"}:
            del chosen["prefix"]
    return plain.fingerprint({"task": task, "config": _same_numbers(chosen)})


def _without_defaults(section: Mapping[str, Any], taker: Taker) -> dict[str, Any]:
    defaults = {key: parameter.default for key, parameter in _settable(taker).items()}
    # Lists and tuples are one in JSON; what is no plain value, such as a factory of a dict, is no value of a config.
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    return {key: value for key, value in section.items() if key not in known or known[key] != value}


def _same_numbers(value: Any) -> Any:
    """Make 1 of 1.0: they are equal, and hash to the same."""
    if isinstance(value, Mapping):
        return {key: _same_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_same_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _taker(section: str, config: Mapping[str, Any]) -> Taker | None:
    if section != "data":
        return _TAKERS.get(section)
    name = config["data"].get("name") if isinstance(config.get("data"), Mapping) else None
    return None if name is None else Taker(source_opener(name))


def _settable(taker: Taker) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(taker.function).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in taker.given}
