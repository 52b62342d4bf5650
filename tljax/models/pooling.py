"""From tokens or feature maps to one vector an image, and from maps to smaller maps."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.paths import did_you_mean

POOLINGS = ("cls", "mean", "cls_mean", "cls_distillation", "max")
# Of a network without tokens too.
WITHOUT_CLASS_TOKEN = ("mean", "max")


def pool(y: jax.Array, kind: str, prefix_tokens: int) -> jax.Array:
    """Reduce tokens [b n d] or a feature map [b h w c] to [b d]; see `Net.pool`."""
    if kind not in POOLINGS:
        raise ValueError(f"pooling {kind!r} is not known{did_you_mean(kind, POOLINGS)}")
    if y.ndim == 2:
        return y  # an earlier stage has pooled
    if kind not in WITHOUT_CLASS_TOKEN and prefix_tokens == 0:
        raise ValueError(f"pooling {kind!r} needs a class token, and this network has none; use 'mean' or 'max'")
    if y.ndim == 4:
        y = y.reshape(y.shape[0], -1, y.shape[-1])  # b h w c -> b (h w) c
    if kind == "cls_distillation":
        return jnp.mean(y[:, :2], axis=1)
    if kind == "max":
        return jnp.max(y[:, prefix_tokens:], axis=1)
    mean = jnp.mean(y[:, prefix_tokens:], axis=1)
    if kind == "mean":
        return mean
    return y[:, 0] if kind == "cls" else jnp.concatenate([y[:, 0], mean], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Float[Array, "b h w c"], size: int, stride: int, margin: int) -> Float[Array, "b y x c"]:
    """Take the largest of each window of a map; among equals the cotangent goes to the first, as in torch.

    XLA's own goes back through a scatter, which on an H200 takes four times as long as reading what it reads.

    Args:
        x: maps.
        size: side of a window.
        stride: from one window to the next.
        margin: around the map, which never is the largest.
    """
    return _max_pool_forward(x, size, stride, margin)[0]


def _max_pool_forward(x: Array, size: int, stride: int, margin: int) -> tuple[Array, tuple[Array, Array]]:
    margins = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = jnp.pad(x, margins, constant_values=-jnp.inf)
    ends = [(side - size) // stride * stride + 1 for side in padded.shape[1:3]]
    largest, place = None, None
    for number, (row, column) in enumerate(_window(size)):
        seen = padded[:, row : row + ends[0] : stride, column : column + ends[1] : stride]
        if largest is None or place is None:
            largest, place = seen, jnp.zeros(seen.shape, jnp.uint8)
        else:
            place = jnp.where(seen > largest, jnp.uint8(number), place)
            largest = jnp.maximum(largest, seen)
    assert largest is not None
    assert place is not None
    # For its shape alone.
    return largest, (place, jnp.zeros((0, *x.shape[1:3])))


def _max_pool_backward(
    size: int, stride: int, margin: int, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array]:
    place, like = saved
    sides = [side + 2 * margin for side in like.shape[1:]]
    wide = cotangent.astype(jnp.float32)
    total = jnp.zeros((len(wide), *sides, wide.shape[3]), jnp.float32)
    for number, first in enumerate(_window(size)):
        spread = [
            (start, side - start - (stride * (count - 1) + 1), stride - 1)
            for side, start, count in zip(sides, first, wide.shape[1:3], strict=True)
        ]
        chosen = jnp.where(place == number, wide, 0.0)
        total += jax.lax.pad(chosen, jnp.float32(0.0), ((0, 0, 0), *spread, (0, 0, 0)))
    within = [slice(margin, margin + side) for side in like.shape[1:]]
    return (total[:, within[0], within[1]].astype(cotangent.dtype),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _window(size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size) for column in range(size)]
