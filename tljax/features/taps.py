"""What is kept of a pass through the net: stages, and how their outputs are pooled."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tljax.devices import MESH_AXES
from tljax.models.net import HEAD, NORM, Arrays, Net
from tljax.paths import did_you_mean, stage_of
from tljax.preprocess import Preprocess

GRID = "grid"
# The one pooling of the head: its scores as they are.
SCORES = "scores"

Pooling = str | Sequence[str] | Mapping[str, str | Sequence[str]]
# Hashable, as a compiled function depends on it.
Taps = tuple[tuple[str, tuple[str, ...]], ...]


def make_taps(net: Net, taps: Sequence[str], pooling: Pooling) -> Taps:
    """Return (stage, its poolings) by depth.

    Args:
        net: that the stages are of.
        taps: stages, in order of depth.
        pooling: of every stage before the head, one or several; or {stage: one or several}.

    Raises:
        ValueError: unknown stages, stages out of order or behind the last features, or stages without a pooling.
    """
    depths = [net.depth(tap) for tap in taps]
    if not depths or depths != sorted(set(depths)):
        raise ValueError(f"taps are {list(taps)}, wanted one or more stages in order of depth, each once")
    if isinstance(pooling, Mapping):
        odd = sorted(set(pooling) ^ set(taps))
        if odd:
            near = did_you_mean(odd[0], taps)
            raise ValueError(f"pooling is of {sorted(pooling)} and taps are {list(taps)}; {odd[0]!r} is not both{near}")
    of_head = pooling if pooling == GRID or not net.num_classes else SCORES
    of_all = {tap: of_head if tap == HEAD else pooling for tap in taps}
    kinds = pooling if isinstance(pooling, Mapping) else of_all
    chosen = tuple(
        (tap, (kind,) if isinstance(kind, str) else tuple(kind)) for tap, kind in ((tap, kinds[tap]) for tap in taps)
    )
    for tap, of_tap in chosen:
        if not of_tap or len(set(of_tap)) < len(of_tap):
            raise ValueError(f"pooling of {tap!r} is {list(of_tap)}, wanted one or more kinds, each once")
        for kind in of_tap:
            _check_depth(net, tap, kind)
    return chosen


def _check_depth(net: Net, tap: str, kind: str) -> None:
    if (tap, kind) == (HEAD, SCORES) and net.num_classes:
        return
    end = net.depth(NORM) if kind != GRID and NORM in net.stages else len(net.stages) - 1
    if net.depth(tap) >= end:
        last = net.stages[end - 1]
        raise ValueError(f"no features with pooling {kind!r} after stage {tap!r}; the last tap can be {last!r}")


def describe_pooling(taps: Taps) -> Any:
    """Return the poolings as plain values: a word where it is that of all stages."""
    kinds = {of_tap for _, of_tap in taps}
    if len(kinds) == 1 and len(taps[0][1]) == 1:
        return taps[0][1][0]
    return {tap: list(of_tap) for tap, of_tap in taps}


def array_name(tap: str, kind: str, of_tap: Sequence[str]) -> str:
    """Name the array of a stage and one of its poolings: "block_05", or "block_05.max" where there are several."""
    return tap if len(of_tap) == 1 else f"{tap}.{kind}"


def running_stages(net: Net, taps: Taps) -> tuple[str, ...]:
    """Return the stages that the features depend on."""
    stages = net.stages[: net.depth(taps[-1][0]) + 1]
    needs_norm = NORM in net.stages and any(kind not in (GRID, SCORES) for _, of_tap in taps for kind in of_tap)
    return stages if not needs_norm or NORM in stages else (*stages, NORM)


def of_stages(values: Mapping[str, Any], stages: Sequence[str]) -> Arrays:
    """Return the params or statistics of some stages."""
    return {path: value for path, value in values.items() if stage_of(path) in stages}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def run_to_taps(
    net: Net, preprocess: Preprocess, taps: Taps, mesh: Mesh, params: Arrays, stats: Arrays, images: jax.Array
) -> Arrays:
    """Run each stage once and return the features of each tap, by name.

    Every device runs the program that a device alone would run on its share of the images, so that the bits do not
    depend on the number of devices.
    """

    def run(params: Arrays, stats: Arrays, images: jax.Array) -> Arrays:
        features, start = {}, 0
        y = preprocess.normalise(images)
        for tap, of_tap in taps:
            stop = net.depth(tap) + 1
            y, _ = net.apply(params, stats, y, start=start, stop=stop)
            start = stop
            normed = y if of_tap in ((GRID,), (SCORES,)) else _norm(net, params, stats, y)
            for kind in of_tap:
                features[array_name(tap, kind, of_tap)] = y if kind in (GRID, SCORES) else net.pool(normed, kind)
        return features

    spread = P(MESH_AXES)
    shared = jax.shard_map(run, mesh=mesh, in_specs=(P(), P(), spread), out_specs=spread, check_vma=False)
    return shared(params, stats, images)


def _norm(net: Net, params: Arrays, stats: Arrays, y: jax.Array) -> jax.Array:
    # Blocks of a ViT are all as wide as its norm; of a network of feature maps, the last ones only.
    if NORM not in net.stages or net.shapes[f"{NORM}/scale"].shape != y.shape[-1:]:
        return y
    return net.apply(params, stats, y, start=NORM, stop=net.depth(NORM) + 1)[0]
