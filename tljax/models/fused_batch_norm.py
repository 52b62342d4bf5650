"""BatchNorm in training mode and the ReLU behind it, with Pallas kernels for the sums over all positions.

XLA's sums over the rows of a matrix read memory at a quarter of its speed on an H200, where there are few channels;
what is computed for each number alone is left to it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from tljax.models.row_kernels import add_up, as_rows, call, channel_block, divide, load, store


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def batch_norm(
    x: Array, scale: Array, bias: Array, near: Array, epsilon: float, has_relu: bool
) -> tuple[Array, Array, Array]:
    """Normalise each channel by its statistics over the other axes, in float32.

    Args:
        x: maps; channels last.
        scale: of each channel, after normalising.
        bias: likewise.
        near: numbers near the means, which differences are taken from: Var = E[(x - near)^2] - E[x - near]^2.
        epsilon: added to the variance.
        has_relu: end with a ReLU.

    Returns:
        The maps in the dtype of x, the means and the variances; of the latter two no cotangents come back.
    """
    mean, variance = _statistics(x, near)
    return _scale(x, scale, bias, mean, variance, epsilon, has_relu), mean, variance


def _statistics(x: Array, near: Array) -> tuple[Array, Array]:
    rows = as_rows(x)
    first, second = _sum_rows(_differences_kernel, "batch_statistics", rows, near)
    difference = first / len(rows)
    return near + difference, jnp.maximum(second / len(rows) - difference * difference, 0.0)


def _scale(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float, has_relu: bool
) -> Array:  # fmt: skip
    over = (None,) * (x.ndim - 1)
    factor = jax.lax.rsqrt(variance + epsilon) * scale
    y = (x.astype(jnp.float32) - mean[over]) * factor[over] + bias.astype(jnp.float32)[over]
    return (jax.nn.relu(y) if has_relu else y).astype(x.dtype)


def _forward(
    x: Array, scale: Array, bias: Array, near: Array, epsilon: float, has_relu: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, variance = _statistics(x, near)
    y = _scale(x, scale, bias, mean, variance, epsilon, has_relu)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _backward(
    epsilon: float, has_relu: bool, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, None]:
    x, scale, bias, mean, variance = saved
    inverse = jax.lax.rsqrt(variance + epsilon)
    factor, over = inverse * scale, (None,) * (x.ndim - 1)
    kernel = functools.partial(_cotangents_kernel, has_relu=has_relu)
    rows = as_rows(x)
    dbias, along = _sum_rows(
        kernel, "batch_norm_backward", rows, mean, factor, bias.astype(jnp.float32), beside=as_rows(cotangents[0])
    )
    dy, centred = cotangents[0].astype(jnp.float32), x.astype(jnp.float32) - mean[over]
    if has_relu:
        dy = jnp.where(centred * factor[over] + bias.astype(jnp.float32)[over] > 0, dy, 0.0)
    level, slope = dbias / len(rows), along * inverse * inverse / len(rows)
    dx = factor[over] * (dy - level[over] - centred * slope[over])
    return dx.astype(x.dtype), (along * inverse).astype(scale.dtype), dbias.astype(bias.dtype), None


batch_norm.defvjp(_forward, _backward)


def _sum_rows(kernel: Any, name: str, rows: Array, *of_channel: Array, beside: Array | None = None) -> list[Array]:
    """Return the two sums over rows that a kernel adds up, of each channel."""
    num_rows, width = rows.shape
    block_rows, block_width = channel_block(width)
    num_parts = pl.cdiv(width, block_width)
    num_groups, rounds = divide(num_rows, block_rows, num_parts)
    kernel = functools.partial(kernel, rounds=rounds, block_rows=block_rows, block_width=block_width)
    of_group = jax.ShapeDtypeStruct((num_groups, width), jnp.float32)
    matrices = (rows,) if beside is None else (rows, beside)
    sums = call(kernel, (num_groups, num_parts), (of_group, of_group), name)(*matrices, *of_channel)
    return [total.sum(axis=0) for total in sums]


def _differences_kernel(
    x_ref: Any, near_ref: Any, first_ref: Any, second_ref: Any, *, rounds: int, block_rows: int, block_width: int
) -> None:
    num_rows, width = x_ref.shape
    channel = pl.program_id(1) * block_width + jnp.arange(block_width)
    has_channel = channel < width
    near = load(near_ref.at[channel], has_channel)

    def term(row: Array, mask: Array) -> tuple[Array, Array]:
        difference = jnp.where(mask, load(x_ref.at[row[:, None], channel[None]], mask) - near[None], 0.0)
        return difference, difference * difference

    first, second = add_up(term, has_channel, num_rows=num_rows, rounds=rounds, block_rows=block_rows)
    store(first_ref.at[pl.program_id(0), channel], first, has_channel)
    store(second_ref.at[pl.program_id(0), channel], second, has_channel)


def _cotangents_kernel(
    x_ref: Any, dy_ref: Any, mean_ref: Any, factor_ref: Any, bias_ref: Any, dbias_ref: Any, along_ref: Any, *,
    has_relu: bool, rounds: int, block_rows: int, block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    channel = pl.program_id(1) * block_width + jnp.arange(block_width)
    has_channel = channel < width
    mean, factor, bias = (load(ref.at[channel], has_channel) for ref in (mean_ref, factor_ref, bias_ref))

    def term(row: Array, mask: Array) -> tuple[Array, Array]:
        place = (row[:, None], channel[None])
        centred, dy = load(x_ref.at[place], mask) - mean[None], load(dy_ref.at[place], mask)
        if has_relu:
            dy = jnp.where(centred * factor[None] + bias[None] > 0, dy, 0.0)
        return dy, dy * centred

    dbias, along = add_up(term, has_channel, num_rows=num_rows, rounds=rounds, block_rows=block_rows)
    store(dbias_ref.at[pl.program_id(0), channel], dbias, has_channel)
    store(along_ref.at[pl.program_id(0), channel], along, has_channel)
