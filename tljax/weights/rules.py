"""From published keys to our paths and back; `strict.check` tells whether nothing is left over on either side."""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from einops import EinopsError, rearrange

from tljax import paths
from tljax.weights.layout import Layout, Rule
from tljax.weights.stored import Stored


@dataclass(kw_only=True)
class Mapped:
    """A checkpoint under our paths, still unread.

    Args:
        arrays: path to array, in our axes.
        keys: path to the published key it comes from, without prefix.
        ignored: keys that carry nothing for us.
        problems: what does not fit, a line each.
    """

    arrays: dict[str, Stored] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def strip_prefix(arrays: Mapping[str, Stored], layout: Layout) -> dict[str, Stored]:
    """Remove the prefix under which a checkpoint keeps its backbone.

    Raises:
        ValueError: the layout's anchors are under none of the known prefixes, or two keys become one.
    """
    prefix = layout.prefix(arrays)
    if prefix is None:
        found = ", ".join(sorted(arrays)[:5])
        raise ValueError(
            f"this is no checkpoint of layout {layout.name!r}: under none of the prefixes {list(layout.prefixes)} are "
            f"the keys {list(layout.anchors)}{paths.did_you_mean(layout.anchors[0], arrays)}; it begins with {found}"
        )
    stripped: dict[str, Stored] = {}
    for key, array in arrays.items():
        short = key.removeprefix(prefix)
        if short in stripped:
            raise ValueError(f"keys {short!r} and {prefix + short!r} are one and the same in layout {layout.name!r}")
        stripped[short] = array
    return stripped


def map_arrays(arrays: Mapping[str, Stored], layout: Layout, architecture: Any) -> Mapped:
    """Bring the arrays of a checkpoint, prefix removed, under our paths and into our axes, without reading them."""
    rules, sizes = layout.rules(architecture), layout.sizes(architecture)
    mapped = Mapped()
    for key, array in arrays.items():
        found = _rule_of(key, rules)
        if found is not None:
            _map_one(mapped, key, array, *found, sizes)
        elif paths.matches_any(layout.ignored, key):
            mapped.ignored.append(key)
        else:
            mapped.problems.append(f"key {key!r} {array.shape} is not known in layout {layout.name!r}")
    return mapped


def invert(params: Mapping[str, Any], layout: Layout, architecture: Any) -> dict[str, np.ndarray]:
    """Rename and permute params and statistics into the published layout, without prefix.

    Raises:
        ValueError: a path that no rule of the layout knows, or one of several params that share a key is missing;
            all in one message.
    """
    rules, sizes = layout.rules(architecture), layout.sizes(architecture)
    parts: dict[str, tuple[Rule, dict[tuple[int, int], Any]]] = {}
    problems = []
    for path, array in params.items():
        found = _key_of(path, rules)
        if found is None:
            problems.append(f"no place for param {path!r} {tuple(array.shape)}")
            continue
        rule, key, position = found
        parts.setdefault(key, (rule, {}))[1][position] = array
    arrays = {}
    for key, (rule, pieces) in parts.items():
        lost = [rule.targets[part] for part in range(len(rule.targets)) if all(part != place[0] for place in pieces)]
        if lost:
            problems.append(f"key {key!r} also needs {', '.join(map(repr, lost))}")
        else:
            arrays[key] = _assemble(rule, pieces, sizes)
    if problems:
        raise ValueError(f"layout {layout.name!r} cannot hold these params:\n  " + "\n  ".join(problems))
    return arrays


def source_of(path: str, rules: tuple[Rule, ...]) -> str | None:
    """Return the published key that fills a path, or None where no rule knows it."""
    found = _key_of(path, rules)
    return None if found is None else found[1]


def _rule_of(key: str, rules: tuple[Rule, ...]) -> tuple[Rule, dict[str, str | int]] | None:
    for rule in rules:
        fields = paths.parse(key, rule.source, rule.numbers)
        if fields is not None:
            return rule, fields
    return None


def _key_of(path: str, rules: tuple[Rule, ...]) -> tuple[Rule, str, tuple[int, int]] | None:
    """Return the rule that makes a path, the key it makes it from, and which part and which layer of that it is."""
    for rule in rules:
        for part, target in enumerate(rule.targets):
            fields = paths.parse(path, target, rule.numbers)
            if fields is None:
                continue
            stacked = _stacked(rule)
            layer = int(fields[stacked]) if stacked else 0
            return rule, paths.fill(rule.source, fields), (part, layer)
    return None


def _stacked(rule: Rule) -> str | None:
    """Name the field that the targets have and the source lacks."""
    (lacking, *_) = [*sorted(paths.field_names(rule.targets[0]) - paths.field_names(rule.source)), None]
    return lacking


def _map_one(
    mapped: Mapped, key: str, array: Stored, rule: Rule, fields: Mapping[str, str | int], sizes: Mapping[str, int]
) -> None:
    named = _sizes_in(rule, sizes)
    try:
        shape = _arranged_shape(array.shape, rule.axes, named)
    except EinopsError:
        mapped.problems.append(f"key {key!r} has shape {array.shape}, wanted axes {rule.axes!r} {named or ''}".rstrip())
        return
    stacked, is_split = _stacked(rule), len(rule.targets) > 1
    for part, target in enumerate(rule.targets):
        inner = shape[1:] if is_split else shape
        for layer in range(inner[0]) if stacked else (None,):
            path = paths.fill(target, fields if layer is None else {**fields, str(stacked): layer})
            if path in mapped.keys:
                mapped.problems.append(f"keys {mapped.keys[path]!r} and {key!r} both fill {path!r}")
                continue
            index = (part,) * is_split + (() if layer is None else (layer,))
            mapped.keys[path] = key
            mapped.arrays[path] = Stored(
                shape=shape[len(index) :], dtype=array.dtype, read=_reader(array, rule.axes, named, index)
            )


def _reader(
    array: Stored, axes: str | None, sizes: Mapping[str, int], index: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        source = array.read()
        return (source if axes is None else rearrange(source, axes, **sizes))[index]

    return read


def _sizes_in(rule: Rule, sizes: Mapping[str, int]) -> dict[str, int]:
    """Choose the sizes that the pattern of a rule names; "parts" counts its targets."""
    words = set(re.findall(r"\w+", rule.axes or ""))
    return {name: size for name, size in {**sizes, "parts": len(rule.targets)}.items() if name in words}


def _arranged_shape(shape: tuple[int, ...], axes: str | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return shape if axes is None else _rearranged_shape(shape, axes, tuple(sizes.items()))


@functools.cache
def _rearranged_shape(shape: tuple[int, ...], axes: str, sizes: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    """Ask einops, without an array; the blocks of a network ask the same again and again."""
    abstract = jax.ShapeDtypeStruct(shape, np.float32)
    return tuple(jax.eval_shape(lambda x: rearrange(x, axes, **dict(sizes)), abstract).shape)


def _assemble(rule: Rule, pieces: Mapping[tuple[int, int], Any], sizes: Mapping[str, int]) -> np.ndarray:
    layers = sorted({layer for _, layer in pieces})
    parts = [[np.asarray(pieces[part, layer]) for layer in layers] for part in range(len(rule.targets))]
    stacks = [np.stack(part) if _stacked(rule) else part[0] for part in parts]
    whole = np.stack(stacks) if len(stacks) > 1 else stacks[0]
    if rule.axes is None:
        return np.ascontiguousarray(whole)
    ours_to_theirs = " -> ".join(reversed(rule.axes.split(" -> ")))
    return np.ascontiguousarray(rearrange(whole, ours_to_theirs, **_sizes_in(rule, sizes)))
