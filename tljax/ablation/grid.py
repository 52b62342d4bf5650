"""A study: a question, a base config, the fields that are varied, and the seeds."""

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.paths import did_you_mean

# {factor: value}, of a factor with labels the label.
Cell = dict[str, Any]
# A list of values of the dotted field that the factor is named after, or {label: {dotted field: value}}.
Values = Sequence[Any] | Mapping[str, Mapping[str, Any]]

SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `get_study()` of a `sweep.py` returns.

    Args:
        slug: short name, of lower-case letters, digits, "-" and "_".
        title: for people.
        question: that the study answers, in a sentence.
        task: of all runs.
        config: that all runs have but for their factors and seed: plain values, or a function that returns an
            `ml_collections.ConfigDict`, as `get_config` of a config file.
        factors: {dotted config field: its values in order}, or {name: {label: {dotted config field: value}}} for what
            several fields say together. None for a whole section leaves that out.
        seeds: of each cell.
        metric: in the results of a run, that cells are compared by.
        baseline: {factor: value}, or label, of the cell that others are compared with, if any.
        zips: names of factors that go together, the first value of one with the first of the other; all others are
            crossed.
        where: tells of a cell, {factor: value}, whether it belongs to the study; None keeps all.

    Raises:
        ValueError: no factor, value or seed, one that is there twice, or a name that is unknown.
    """

    slug: str
    title: str
    question: str
    task: str
    config: Mapping[str, Any] | Callable[[], Any]
    factors: Mapping[str, Values]
    seeds: Sequence[int]
    metric: str
    baseline: Mapping[str, Any] | None = None
    zips: Sequence[Sequence[str]] = ()
    where: Callable[[Cell], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no grid."""
        problems = [*_name_problems(self), *_value_problems(self)]
        if not problems and self.baseline is not None and dict(self.baseline) not in cells_of(self):
            problems.append(f"the baseline {dict(self.baseline)} is no cell of the grid")
        if not problems and not cells_of(self):
            problems.append("no cell is left: `where` keeps none")
        if problems:
            raise ValueError(f"study {self.slug!r}: {'; '.join(problems)}")

    def base(self) -> dict[str, Any]:
        """Return the config that the cells change."""
        config: Any = self.config() if callable(self.config) else self.config
        to_dict = getattr(config, "to_dict", None)
        return copy.deepcopy(dict(config)) if to_dict is None else to_dict()

    def fields(self, cell: Cell) -> dict[str, Any]:
        """Return {dotted field: value} of a cell."""
        found: dict[str, Any] = {}
        for factor, value in cell.items():
            values = self.factors[factor]
            found |= values[value] if isinstance(values, Mapping) else {factor: value}
        return found


def product(*axes: Iterable[Cell]) -> list[Cell]:
    """Cross lists of cells: every one of the first with every one of the second, and so on; the last varies fastest."""
    return [_merged(parts) for parts in itertools.product(*axes)]


def zipped(*axes: Sequence[Cell]) -> list[Cell]:
    """Join lists of cells one by one.

    Raises:
        ValueError: they differ in length.
    """
    if len({len(axis) for axis in axes}) > 1:
        raise ValueError(f"lists of {', '.join(str(len(axis)) for axis in axes)} values cannot be joined one by one")
    return [_merged(parts) for parts in zip(*axes, strict=True)]


def when(cells: Iterable[Cell], condition: Callable[[Cell], bool]) -> list[Cell]:
    """Keep the cells of which a condition is true."""
    return [cell for cell in cells if condition(cell)]


def cells_of(study: Study) -> list[Cell]:
    """Return the cells of a study, in order.

    Raises:
        ValueError: factors that go together have different numbers of values.
    """
    together = {name: tuple(names) for names in study.zips for name in names}
    axes, seen = [], set()
    for factor in study.factors:
        names = together.get(factor, (factor,))
        if factor in seen:
            continue
        seen |= {*names}
        axes.append(zipped(*([{name: value} for value in study.factors[name]] for name in names)))
    cells = product(*axes)
    return cells if study.where is None else when(cells, study.where)


def apply_fields(
    config: Mapping[str, Any], fields: Mapping[str, Any], known: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """Return a config with some of its fields changed.

    Args:
        config: plain values; stays as it is.
        fields: {dotted field: value}; None for a whole section leaves that out.
        known: the sections that a config may have, each with the keys that it may have.

    Raises:
        ValueError: fields that there are not, all of them.
    """
    changed, problems = copy.deepcopy(dict(config)), []
    for field, value in fields.items():
        *parents, last = field.split(".")
        problem = _problem(changed, parents, last, known)
        if problem is not None:
            problems.append(f"no config field {field!r}{problem}")
            continue
        section: dict[str, Any] = changed
        for name in parents:
            section = section[name]
        if value is None and not parents:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
    if problems:
        raise ValueError("; ".join(problems))
    return changed


def _problem(
    config: Mapping[str, Any], parents: Sequence[str], last: str, known: Mapping[str, Iterable[str]]
) -> str | None:
    """Say why a field cannot be set, as the end of a sentence; None where it can."""
    if not parents:
        return None if last in known else did_you_mean(last, known)
    section: Any = config
    for depth, name in enumerate(parents):
        if not isinstance(section, Mapping) or name not in section:
            where = ".".join(parents[: depth + 1])
            return f": the base config has no {where!r}{did_you_mean(name, section)}"
        section = section[name]
    if not isinstance(section, Mapping):
        return f": {'.'.join(parents)!r} is a {type(section).__name__} there, with no fields"
    names = {*section, *(known.get(parents[0], ()) if len(parents) == 1 else ())}
    return None if last in names else did_you_mean(last, names)


def _merged(parts: Iterable[Cell]) -> Cell:
    merged: Cell = {}
    for part in parts:
        twice = sorted({*merged} & {*part})
        if twice:
            raise ValueError(f"{', '.join(twice)}: set twice in one cell")
        merged |= part
    return merged


def _name_problems(study: Study) -> list[str]:
    problems = []
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", study.slug):
        problems.append(f"slug is {study.slug!r}, wanted lower-case letters, digits, '-' and '_'")
    names = [name for together in study.zips for name in together]
    problems += [f"zips: no factor {name!r}{did_you_mean(name, study.factors)}" for name in names
                 if name not in study.factors]  # fmt: skip
    if len(set(names)) < len(names):
        problems.append("zips: a factor is in two of them")
    sizes = [{len(study.factors[name]) for name in together if name in study.factors} for together in study.zips]
    problems += [f"zips: {' and '.join(together)} have different numbers of values"
                 for together, found in zip(study.zips, sizes, strict=True) if len(found) > 1]  # fmt: skip
    return problems


def _value_problems(study: Study) -> list[str]:
    problems = []
    if not study.factors:
        problems.append("no factors; one run needs no study")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        problems.append(f"seeds are {list(study.seeds)}, wanted at least one, each once")
    fields: dict[str, str] = {SEED: "seeds"}
    for factor, values in study.factors.items():
        shown = [repr(value) for value in values]
        if not shown or len(set(shown)) < len(shown):
            problems.append(f"{factor} has the values {', '.join(shown) or 'none'}, wanted at least one, each once")
        named = {field for level in values.values() for field in level} if isinstance(values, Mapping) else {factor}
        problems += [f"{factor} sets {field!r}, and so does {fields[field]}" for field in sorted(named & {*fields})]
        fields |= dict.fromkeys(named, factor)
    return problems
