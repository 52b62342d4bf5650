"""k nearest neighbours by cosine: blocks of queries against blocks of known rows, so that memory grows with neither."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import track

from tljax.features.labels import Labels, as_targets, is_multilabel

# Rows compared at once, at most: 16 MiB of cosines. Powers of two, so that few programs are compiled.
_QUERIES = 1024
_KEYS = 4096
_FEWEST_ROWS = 64
# Fewer blocks of queries show no progress bar.
_LONG = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Known rows and how they vote; see `votes`."""

    features: Float[np.ndarray, "n d"]
    labels: Labels
    num_classes: int
    count: int
    temperature: float

    def predict_proba(self, features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """Return the share of votes of each class, or of each label."""
        cosines, positions = nearest(self.features, features, self.count)
        return votes(cosines, positions, self.labels, self.num_classes, self.temperature)


def nearest(
    keys: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"], count: int
) -> tuple[Float[np.ndarray, "m count"], Int[np.ndarray, "m count"]]:
    """Find the `count` keys of largest cosine to each query, exactly; of equal ones those of lower row.

    "Equal" is after rounding to float32. A row of zeros has the cosine 0 with everything.

    Args:
        keys: known rows; all of them are on the device, beside one block of cosines.
        queries: rows to find the neighbours of.
        count: 1 to n.

    Returns:
        Cosines, falling, and positions in `keys`.

    Raises:
        ValueError: a count that the keys cannot give.
    """
    if not 1 <= count <= len(keys):
        raise ValueError(f"{count} neighbours wanted of {len(keys)} rows; ask for 1 to {len(keys)}")
    key_rows, query_rows = _block_rows(len(keys), _KEYS), _block_rows(len(queries), _QUERIES)
    cosines = np.empty((len(queries), count), np.float32)
    positions = np.empty((len(queries), count), np.int32)
    with jax.default_matmul_precision("highest"):
        known = _unit(jnp.asarray(_pad(keys, -len(keys) % key_rows)))
        for start in _starts(len(queries), query_rows):
            asked = queries[start : start + query_rows]
            block = jnp.asarray(_pad(asked, query_rows - len(asked)))
            found = _search(known, block, jnp.int32(len(keys)), count, key_rows)
            stop = start + len(asked)
            cosines[start:stop], positions[start:stop] = (np.asarray(part)[: len(asked)] for part in found)
    return cosines, positions


def votes(
    cosines: Float[np.ndarray, "m count"],
    positions: Int[np.ndarray, "m count"],
    labels: Labels,
    num_classes: int,
    temperature: float,
) -> Float[np.ndarray, "m k"]:
    """Return the share of votes of each class among neighbours; of each label, the share of votes of rows with it.

    Args:
        cosines: of `nearest`.
        positions: of `nearest`.
        labels: of the keys.
        num_classes: number of classes, or of labels.
        temperature: a vote weighs exp(cosine / temperature); infinity counts heads.

    Source:
        Caron et al. 2021, arXiv:2104.14294, section 4.1, with temperature 0.07.
    """
    # Relative to the nearest: the exponentials stay in range and the shares are the same.
    weights = np.exp((cosines - cosines[:, :1]) / np.float32(temperature))
    weights /= weights.sum(axis=1, keepdims=True)
    shares = np.empty((len(cosines), num_classes), np.float32)
    targets = jnp.asarray(as_targets(labels, num_classes)) if is_multilabel(labels) else None
    rows = _block_rows(len(cosines), _QUERIES)
    for start in range(0, len(cosines), rows):
        part = slice(start, start + rows)
        missing = rows - len(weights[part])
        shown = jnp.asarray(_pad(weights[part], missing))
        where = _pad(positions[part], missing)
        if targets is None:
            counted = _count_classes(shown, jnp.asarray(labels[where].astype(np.int32)), num_classes)
        else:
            counted = _count_labels(shown, jnp.asarray(where), targets)
        shares[part] = np.asarray(counted)[: len(weights[part])]
    return shares


@partial(jax.jit, static_argnames=("count", "rows"))
def _search(
    keys: Float[Array, "n d"], queries: Float[Array, "q d"], num_keys: Int[Array, ""], count: int, rows: int
) -> tuple[Float[Array, "q count"], Int[Array, "q count"]]:
    """Keep the best of each block of keys and of those before it; rows from `num_keys` on are padding."""
    asked = _unit(queries)

    def merge(block: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        cosines = asked @ jax.lax.dynamic_slice_in_dim(keys, block * rows, rows).T
        positions = block * rows + jnp.arange(rows, dtype=jnp.int32)
        cosines = jnp.where((positions < num_keys)[None], cosines, -jnp.inf)
        # top_k takes the first of equal ones, and rows of earlier blocks are put first.
        top, where = jax.lax.top_k(cosines, min(count, rows))
        joined = jnp.concatenate([best[0], top], axis=1)
        sources = jnp.concatenate([best[1], block * rows + where], axis=1)
        top, where = jax.lax.top_k(joined, count)
        return top, jnp.take_along_axis(sources, where, axis=1)

    none = jnp.full((len(queries), count), -jnp.inf), jnp.zeros((len(queries), count), jnp.int32)
    return jax.lax.fori_loop(0, len(keys) // rows, merge, none)


@partial(jax.jit, static_argnames="num_classes")
def _count_classes(weights: Float[Array, "q count"], labels: Int[Array, "q count"], num_classes: int) -> Array:
    """Sum weights by class, one neighbour after the other: a scatter would add in any order on a GPU."""

    def add(neighbour: Array, shares: Array) -> Array:
        is_class = labels[:, neighbour][:, None] == jnp.arange(num_classes, dtype=jnp.int32)[None]
        return shares + jnp.where(is_class, weights[:, neighbour][:, None], 0)

    return jax.lax.fori_loop(0, weights.shape[1], add, jnp.zeros((len(weights), num_classes), jnp.float32))


@jax.jit
def _count_labels(
    weights: Float[Array, "q count"], positions: Int[Array, "q count"], targets: Float[Array, "n k"]
) -> Array:
    def add(neighbour: Array, shares: Array) -> Array:
        return shares + weights[:, neighbour][:, None] * targets[positions[:, neighbour]]

    return jax.lax.fori_loop(0, weights.shape[1], add, jnp.zeros((len(weights), targets.shape[1]), jnp.float32))


@jax.jit
def _unit(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)


def _block_rows(n: int, most: int) -> int:
    """Return a power of two that holds n rows, within limits."""
    return min(most, max(_FEWEST_ROWS, 2 ** math.ceil(math.log2(max(n, 1)))))


def _pad(rows: np.ndarray, missing: int) -> np.ndarray:
    rows = rows if rows.dtype == np.int32 else rows.astype(np.float32, copy=False)
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _starts(n: int, rows: int) -> Iterator[int]:
    starts = range(0, n, rows)
    bar = {"description": "nearest neighbours", "console": Console(stderr=True), "disable": len(starts) < _LONG}
    yield from track(starts, **bar)
