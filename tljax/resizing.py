"""What `Preprocess` does on the host with Pillow, as a function that JAX compiles, for images of any size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from tljax.preprocess import INTERPOLATIONS, Preprocess

# Pillow's src/libImaging/Resample.c: coefficients are whole numbers of 2^-22, `PRECISION_BITS`.
_PRECISION = 2.0**22
# src/libImaging/Convert.c, `L24`: the shares of red, green and blue in grey, of 2^16.
_GREY = (19595, 38470, 7471)


def _bilinear(x: jax.Array) -> jax.Array:
    return jnp.clip(1.0 - jnp.abs(x), 0.0)


def _hamming(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 1.0, jnp.sinc(x) * (0.54 + 0.46 * jnp.cos(jnp.pi * x)), 0.0)


def _bicubic(x: jax.Array) -> jax.Array:
    x, a = jnp.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _lanczos(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 3.0, jnp.sinc(x) * jnp.sinc(x / 3.0), 0.0)


# Those of Pillow that have no jumps, where a rounding would choose another pixel.
FILTERS = {"bilinear": _bilinear, "hamming": _hamming, "bicubic": _bicubic, "lanczos": _lanczos}


def prepare(images: UInt8[Array, "b y x 3"], preprocess: Preprocess) -> UInt8[Array, "b height width c"]:
    """Resize and crop as `preprocess` does; traceable, also with sizes that are symbols.

    Sums are taken in float32 where Pillow's are of whole numbers: a pixel that lies between two levels may get the
    other one, and no pixel is further off.

    Raises:
        ValueError: the interpolation has jumps, so it cannot be followed.
    """
    if preprocess.interpolation not in FILTERS:
        raise ValueError(
            f"interpolation {preprocess.interpolation!r} cannot be done as Pillow does it; known: {', '.join(FILTERS)}"
        )
    height, width, channels = preprocess.shape
    if channels == 1:
        shares = jnp.array(_GREY, jnp.int32)[None, None, None]
        images = ((images.astype(jnp.int32) * shares).sum(axis=-1, keepdims=True) + 2**15 >> 16).astype(jnp.uint8)
    sides = [jnp.asarray(side, jnp.int32) for side in images.shape[1:3]]
    resized = _resized(preprocess, sides)
    rows, columns = (
        _weights(side, length, whole, wanted, preprocess)
        for side, length, whole, wanted in zip(images.shape[1:3], sides, resized, (height, width), strict=True)
    )

    def along(pixels: jax.Array) -> jax.Array:
        return _to_levels(jnp.einsum("byxc,vx->byvc", pixels, columns, precision="highest"))

    def down(pixels: jax.Array) -> jax.Array:
        return _to_levels(jnp.einsum("byxc,uy->buxc", pixels, rows, precision="highest"))

    # With whole levels in between, as Pillow, so the order shows.
    pixels = images.astype(jnp.float32)
    if pillow_may_go_down_first():
        is_tall = _is_tall(sides, resized)
        pixels = jax.lax.cond(is_tall, lambda x: along(down(x)), lambda x: down(along(x)), pixels)
    else:
        pixels = down(along(pixels))
    prepared = pixels.astype(jnp.uint8)
    return prepared if preprocess.channel_order == "rgb" else prepared[..., ::-1]


@functools.cache
def pillow_may_go_down_first() -> bool:
    """Tell whether the installed Pillow resizes tall images down before along, as version 13 does, or never, as 12."""
    tall = Image.fromarray(np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 11)))
    method = INTERPOLATIONS["bicubic"]
    in_steps = tall.resize((11, 10), method).resize((10, 10), method)
    return np.array_equal(np.asarray(tall.resize((10, 10), method)), np.asarray(in_steps))


def _is_tall(sides: list[jax.Array], resized: list[jax.Array]) -> jax.Array:
    """Tell whether Pillow 13 goes down first; found by trying sizes, see tests/test_resizing.py."""
    lost_down, lost_along = (side - new for side, new in zip(sides, resized, strict=True))
    return (lost_down > 0) & (lost_down > 2 * lost_along)


def _resized(preprocess: Preprocess, sides: list[jax.Array]) -> list[jax.Array]:
    """Return the height and width before the crop."""
    height, width, _ = preprocess.shape
    if preprocess.resize is None or isinstance(preprocess.resize, tuple):
        return [jnp.asarray(side, jnp.int32) for side in preprocess.resize or (height, width)]
    shortest = jnp.minimum(*sides)
    return [preprocess.resize * side // shortest for side in sides]


def _weights(
    side: Any, length: jax.Array, resized: jax.Array, wanted: int, preprocess: Preprocess
) -> Float[Array, "wanted side"]:
    """Return how much each pixel of a side counts in each of those that the crop keeps."""
    margin = resized - wanted
    first = margin // 2
    if preprocess.crop_rounding == "even":
        first = first + margin % 2 * (first % 2)
    targets = (first + jnp.arange(wanted, dtype=jnp.int32))[:, None]
    sources = jnp.arange(side, dtype=jnp.int32)[None]
    # The distance between their middles, in units of which both are whole; divided only then.
    distance = (2 * sources + 1) * resized - (2 * targets + 1) * length
    scaled = distance.astype(jnp.float32) / (2 * jnp.maximum(length, resized)).astype(jnp.float32)
    weights = FILTERS[preprocess.interpolation](scaled)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.sign(weights) * jnp.floor(jnp.abs(weights) * _PRECISION + 0.5) / _PRECISION


def _to_levels(pixels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(pixels + 0.5), 0.0, 255.0)
