"""The factors of a study: the config fields that were varied, and the place of a run among their values."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.plain import flatten

# Fields that are no factors: repeats, and where files are.
SEED, REPEAT = "seed", "split.repeat"
NO_FACTORS = (SEED, REPEAT, "cache_dir", "title")
_ABSENT = "absent"

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Config fields that vary together.

    Args:
        name: for people.
        fields: dotted names; several where each value of one comes with one value of the others.
        levels: {value of the fields in a form that can be compared: label}, in order.
    """

    name: str
    fields: tuple[str, ...]
    levels: Mapping[str, str]

    def level(self, config: Config) -> str:
        """Return the label of what a config has in these fields."""
        return self.levels[_key(config, self.fields)]


def declared_factors(declared: Mapping[str, Sequence[Any]], configs: Sequence[Config]) -> list[Factor]:
    """Return the factors that a study declares; values that only runs have come after those that it lists."""
    factors = []
    for field, values in declared.items():
        listed = {_canonical((value,)): (value,) for value in values}
        seen = {_key(config, (field,)): (_lookup(config, field),) for config in configs}
        factors.append(_factor((field,), {**listed, **seen}))
    return factors


def inferred_factors(configs: Sequence[Config]) -> list[Factor]:
    """Return the fields in which runs differ, those that vary together as one; levels are in order of size."""
    flat = [dict(flatten(config)) for config in configs]
    fields = [field for field in dict.fromkeys(name for one in flat for name in one) if field not in NO_FACTORS]
    together: dict[tuple[int, ...], list[str]] = {}
    for field in fields:
        keys = [_canonical((one.get(field, _ABSENT),)) for one in flat]
        distinct = list(dict.fromkeys(keys))
        if len(distinct) > 1:
            # The same number for runs of the same value: equal for fields that vary together.
            together.setdefault(tuple(map(distinct.index, keys)), []).append(field)
    factors = []
    for same in together.values():
        values = {_key(config, same): tuple(_lookup(config, field) for field in same) for config in configs}
        factors.append(_factor(tuple(same), dict(sorted(values.items(), key=lambda pair: _order(pair[1])))))
    return factors


def _factor(fields: tuple[str, ...], values: Mapping[str, tuple[Any, ...]]) -> Factor:
    labels = {key: ", ".join(map(label, one)) for key, one in values.items()}
    # A number and its text would look the same.
    doubles = {label for label, count in Counter(labels.values()).items() if count > 1}
    return Factor(
        name=" & ".join(fields),
        fields=fields,
        levels={key: key if label in doubles else label for key, label in labels.items()},
    )


def level_of(factor: Factor, value: Any) -> str:
    """Return the label of a value.

    Raises:
        ValueError: the factor has no such value.
    """
    key = _canonical((value,))
    if key not in factor.levels:
        raise ValueError(f"{factor.name} is never {value!r}; it is {', '.join(factor.levels.values())}")
    return factor.levels[key]


def cell_of(config: Config, factors: Sequence[Factor]) -> tuple[str, ...]:
    """Return the level of each factor."""
    return tuple(factor.level(config) for factor in factors)


def has_repeats(configs: Sequence[Config], factors: Sequence[Factor]) -> bool:
    """Tell whether runs repeat on several splits, which then count as seeds do."""
    is_factor = any(REPEAT in factor.fields for factor in factors)
    return not is_factor and len({_key(config, (REPEAT,)) for config in configs}) > 1


def seed_of(config: Config, *, with_repeat: bool) -> tuple[int, ...]:
    """Return what tells repeats of a cell apart: the seed, with the repeat of the split where that varies."""
    seed = int(config[SEED])
    return (seed, int(_lookup(config, REPEAT))) if with_repeat else (seed,)


def stray_fields(cells: Sequence[tuple[str, ...]], configs: Sequence[Config]) -> list[str]:
    """Return the fields in which runs of one cell differ, beside the seed: they are no factors, and should not."""
    values: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for cell, config in zip(cells, configs, strict=True):
        for field, value in flatten(config):
            values.setdefault((cell, field), set()).add(_canonical((value,)))
    strays = (field for (_, field), found in values.items() if len(found) > 1 and field not in NO_FACTORS)
    return list(dict.fromkeys(strays))


def _lookup(config: Config, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _key(config: Config, fields: Sequence[str]) -> str:
    return _canonical(tuple(_lookup(config, field) for field in fields))


def _canonical(values: tuple[Any, ...]) -> str:
    """Return a text that is the same for equal values: 1 and 1.0 are equal, 1 and True are not."""
    return ", ".join(json.dumps(_with_floats(value), sort_keys=True) for value in values)


def _with_floats(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _with_floats(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(inner) for inner in value]
    return value


def label(value: Any) -> str:
    """Write a value for people."""
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(map(label, value)) or "nothing"
    return json.dumps(value, sort_keys=True).strip("{}").replace('"', "") or "nothing"


def _order(values: tuple[Any, ...]) -> tuple[tuple[bool, float, str], ...]:
    """Sort numbers by size, before all else by its text."""

    def order(value: Any) -> tuple[bool, float, str]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return not is_number, float(value) if is_number else 0.0, label(value)

    return tuple(map(order, values))
