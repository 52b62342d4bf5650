"""Tables of renames between a published layout and ours, strict in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax import paths

Shapes = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One kind of param in two layouts.

    Args:
        source: template of the published key, such as "encoder.layer.{layer}.norm1.weight".
        target: template of our path, such as "block_{layer:02d}/norm1/scale".
        permute: axes of the source array in the order of ours; None leaves them.
    """

    source: str
    target: str
    permute: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published layout.

    Args:
        name: what the layout is called in messages.
        prefixes: text that may stand before every key but those of the head, tried in order.
        anchor: a key, after the prefix, that every checkpoint of the layout has.
        rules: cover every key that carries a param.
        ignored: regexes of keys, without prefix, that carry none for us.
    """

    name: str
    prefixes: tuple[str, ...]
    anchor: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every key of a checkpoint and of every param of the net."""

    used: dict[str, str]
    ignored: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.used)} arrays used, {len(self.ignored)} ignored, {len(self.fresh)} fresh"]
        lines += [f"  ignored  {key}" for key in self.ignored]
        lines += [f"  fresh    {path}" for path in self.fresh]
        return "\n".join(lines)


def strip_prefix(arrays: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Remove the prefix under which a checkpoint keeps its backbone.

    Raises:
        ValueError: the layout's anchor is under none of the known prefixes.
    """
    for prefix in table.prefixes:
        if prefix + table.anchor in arrays:
            return {key.removeprefix(prefix): array for key, array in arrays.items()}
    found = ", ".join(sorted(arrays)[:5])
    raise ValueError(
        f"this is no checkpoint of layout {table.name!r}: it has no key {table.anchor!r} under any of the prefixes "
        f"{list(table.prefixes)}{paths.did_you_mean(table.anchor, arrays)}; it begins with {found}"
    )


def convert(
    arrays: Mapping[str, np.ndarray], table: Table, shapes: Shapes, *, fresh: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Rename and permute the arrays of a checkpoint into params of the given shapes.

    Args:
        arrays: key to array, prefix removed.
        table: the layout of `arrays`.
        shapes: path to shape of every param wanted.
        fresh: paths that are not taken from the checkpoint even where it has them, such as a new head's.

    Returns:
        The params without the fresh ones, and the report.

    Raises:
        ValueError: a key that no rule knows, a param that nothing fills, two keys for one param, or a
            wrong shape; all in one message, each with the nearest name.
    """
    params: dict[str, np.ndarray] = {}
    used: dict[str, str] = {}
    ignored, problems = [], []
    for key, array in arrays.items():
        target = _target(key, table)
        if target is None:
            if paths.matches_any(table.ignored, key):
                ignored.append(key)
            else:
                problems.append(f"key {key!r} {array.shape} is not known in layout {table.name!r}")
            continue
        path, permute = target
        if path in fresh:
            ignored.append(key)
        elif path in used:
            problems.append(f"keys {used[path]!r} and {key!r} both fill {path!r}")
        elif permute is not None and len(permute) != array.ndim:
            problems.append(f"key {key!r} has shape {array.shape}, wanted {len(permute)} axes")
        else:
            used[path] = key
            params[path] = array if permute is None else array.transpose(permute)
    wanted = {path: shape for path, shape in shapes.items() if path not in fresh}
    problems += [_with_source(problem, table, used) for problem in paths.diff(params, wanted)]
    if problems:
        raise ValueError(f"{len(problems)} mismatches with layout {table.name!r}:\n  " + "\n  ".join(problems))
    return params, LoadReport(used={key: path for path, key in used.items()}, ignored=tuple(ignored), fresh=fresh)


def invert(params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Rename and permute params into the published layout.

    Raises:
        ValueError: a path that no rule of the layout knows.
    """
    arrays = {}
    for path, array in params.items():
        for rule in table.rules:
            key = paths.rename(path, rule.target, rule.source)
            if key is not None:
                axes = None if rule.permute is None else tuple(np.argsort(rule.permute))
                arrays[key] = np.ascontiguousarray(array if axes is None else np.transpose(array, axes))
                break
        else:
            raise ValueError(f"layout {table.name!r} has no place for param {path!r}")
    return arrays


def _target(key: str, table: Table) -> tuple[str, tuple[int, ...] | None] | None:
    for rule in table.rules:
        path = paths.rename(key, rule.source, rule.target)
        if path is not None:
            return path, rule.permute
    return None


def _with_source(problem: str, table: Table, used: Mapping[str, str]) -> str:
    """Add the published key to a message about one of our paths: the reader looks at their own file."""
    path = problem.split("'")[1]
    if path in used:
        return f"{problem} (from key {used[path]!r}, axes already in our order)"
    keys = (paths.rename(path, rule.target, rule.source) for rule in table.rules)
    key = next((key for key in keys if key is not None), None)
    return f"{problem}; the checkpoint lacks key {key!r}" if key and problem.startswith("missing") else problem
