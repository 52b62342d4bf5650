"""What a checkpoint has against what a net wants, strict in both directions and before any array is read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from tljax import paths
from tljax.weights.layout import Layout
from tljax.weights.rules import Mapped, source_of


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every key of a checkpoint and of every param of the net."""

    used: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.used)} arrays used, {len(self.ignored)} ignored, {len(self.fresh)} fresh"]
        lines += [f"  ignored  {key}" for key in self.ignored]
        lines += [f"  fresh    {path}" for path in self.fresh]
        return "\n".join(lines)


def check(
    mapped: Mapped, layout: Layout, architecture: Any, shapes: Mapping[str, Any], fresh: Collection[str] = ()
) -> LoadReport:
    """Compare a mapped checkpoint with the params and statistics that a net wants.

    Args:
        mapped: the checkpoint.
        layout: that it was mapped with.
        architecture: that it was mapped with.
        shapes: path to shape of everything the net holds.
        fresh: paths that are not taken from the checkpoint even where it has them, such as a new head's; they
            need not be in `shapes`.

    Raises:
        ValueError: a key that no rule knows, a param that nothing fills, two keys for one param, or a wrong shape;
            all in one message, each with the nearest name.
    """
    rules = layout.rules(architecture)
    present = {path: array for path, array in mapped.arrays.items() if path not in fresh}
    wanted = {path: shape for path, shape in shapes.items() if path not in fresh}
    lacking = {path: source_of(path, rules) for path in sorted(set(wanted) - set(present))}
    problems = [_with_nearest(problem, [key for key in lacking.values() if key]) for problem in mapped.problems]
    for path, key in lacking.items():
        source = f"; the checkpoint lacks key {key!r}" if key else f"; layout {layout.name!r} has no key for it"
        problems.append(f"missing {path!r} {tuple(wanted[path].shape)}{source}")
    for path in sorted(set(present) - set(wanted)):
        near = paths.did_you_mean(path, lacking)
        problems.append(f"key {mapped.keys[path]!r} fills {path!r} {present[path].shape}, which the net lacks{near}")
    for path in sorted(set(present) & set(wanted)):
        if not jnp.issubdtype(present[path].dtype, jnp.floating):
            problems.append(f"key {mapped.keys[path]!r} has dtype {present[path].dtype}, wanted floating-point numbers")
        got, want = tuple(present[path].shape), tuple(wanted[path].shape)
        if got != want:
            problems.append(f"key {mapped.keys[path]!r} gives {path!r} the shape {got}, wanted {want} (axes as ours)")
    if problems:
        raise ValueError(f"{len(problems)} mismatches with layout {layout.name!r}:\n  " + "\n  ".join(problems))
    used: dict[str, tuple[str, ...]] = {}
    for path in present:
        used[mapped.keys[path]] = (*used.get(mapped.keys[path], ()), path)
    replaced = {mapped.keys[path] for path in mapped.arrays if path in fresh} - set(used)
    return LoadReport(used=used, ignored=tuple(mapped.ignored) + tuple(sorted(replaced)), fresh=tuple(sorted(fresh)))


def _with_nearest(problem: str, lacking: list[str]) -> str:
    """Add the missing key that an unknown one resembles most."""
    return problem + paths.did_you_mean(problem.split("'")[1], lacking) if "is not known" in problem else problem
