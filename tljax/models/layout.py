"""A stage as NNX sees it, and as flat dicts of arrays: how one becomes the other."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from tljax.models.architecture import Architecture


@dataclass(frozen=True)
class Layout:
    """One stage without its arrays: the graph, and the abstract variables in the order NNX binds them."""

    graph: Any
    params: dict[str, Any]
    stats: dict[str, Any]

    def choose(self, params: Mapping[str, Any], stats: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return of params and statistics those of the stage."""
        return {path: params[path] for path in self.params}, {path: stats[path] for path in self.stats}

    def bind(self, params: Mapping[str, Any], stats: Mapping[str, Any]) -> Any:
        """Build the live module of the stage.

        `nnx.merge` binds by position and checks only the number of leaves, so the states are built from
        the layout's own paths, in its own order.
        """
        states = [
            nnx.from_flat_state([(_keys(path), leaf.replace(given[path])) for path, leaf in leaves.items()])
            for leaves, given in ((self.params, params), (self.stats, stats))
        ]
        return nnx.merge(self.graph, *states)


# Tracing the stages of a ViT takes some tenths of a second, and nets of one architecture are made again and again.
@functools.lru_cache(maxsize=4096)
def layout_of(architecture: Architecture, stage: str) -> Layout:
    """Return the layout of a stage."""
    module = nnx.eval_shape(lambda: architecture.build(stage, nnx.Rngs(0)))
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    # Without the mesh that they have where this runs inside of a mapped function: layouts are kept.
    params, stats = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)
    return Layout(graph=graph, params=_leaves(stage, params), stats=_leaves(stage, stats))


def flatten(stage: str, module: Any, kind: type) -> dict[str, Any]:
    """Return the arrays of a live module that are variables of a kind, by path."""
    return {path: leaf.get_value() for path, leaf in _leaves(stage, nnx.state(module, kind)).items()}


def _leaves(stage: str, state: Any) -> dict[str, Any]:
    return {"/".join((stage, *map(str, keys))): leaf for keys, leaf in nnx.to_flat_state(state)}


def _keys(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])
