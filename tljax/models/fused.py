"""Pallas kernels for tokens: LayerNorm beside a skip connection, and a GELU with the bias before it.

XLA goes over the cotangents several times: for those of the input, of the scale and of the bias. These go once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from tljax.models.gelu import gelu_derivative, gelu_value
from tljax.models.row_kernels import BLOCK, add_up, as_rows, call, channel_block, divide, load, store


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def skip_and_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
    """Return x, for the skip connection around what reads its norm, and the norm of its last axis in the dtype of x.

    The norm is that of `normalisation.LayerNorm`, in float32. The backward pass adds both cotangents in its kernel.
    """
    return x, _normalise(x, scale, bias, epsilon)[0]


@jax.custom_vjp
def bias_gelu(x: Array, bias: Array) -> Array:
    """Return `gelu(x + bias)`, the sum in float32; bias is of the last axis."""
    rows = as_rows(x)
    block_rows, block_width = channel_block(rows.shape[1])
    grid = (pl.cdiv(len(rows), block_rows), pl.cdiv(rows.shape[1], block_width))
    kernel = functools.partial(_bias_gelu_kernel, block_rows=block_rows, block_width=block_width)
    return call(kernel, grid, jax.ShapeDtypeStruct(rows.shape, x.dtype), "bias_gelu")(rows, bias).reshape(x.shape)


def _normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    rows = as_rows(x)
    block_rows, block_width = _row_block(rows.shape[1])
    kernel = functools.partial(_normalise_kernel, epsilon=epsilon, block_rows=block_rows, block_width=block_width)
    of_row = jax.ShapeDtypeStruct((len(rows),), jnp.float32)
    y, mean, inverse = call(
        kernel, (pl.cdiv(len(rows), block_rows),), (jax.ShapeDtypeStruct(rows.shape, x.dtype), of_row, of_row), "norm"
    )(rows, scale, bias)
    return y.reshape(x.shape), mean, inverse


def _normalise_kernel(
    x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any, mean_ref: Any, inverse_ref: Any, *, epsilon: float,
    block_rows: int, block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    row = pl.program_id(0) * block_rows + jnp.arange(block_rows)
    channel = jnp.arange(block_width)
    has_row, has_channel = row < num_rows, channel < width
    mask = has_row[:, None] & has_channel[None]
    x = load(x_ref.at[row[:, None], channel[None]], mask)
    mean = jnp.sum(x, axis=1) / width
    centred = jnp.where(mask, x - mean[:, None], 0.0)
    inverse = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1) / width + epsilon)
    scale, bias = (load(ref.at[channel], has_channel) for ref in (scale_ref, bias_ref))
    store(y_ref.at[row[:, None], channel[None]], centred * inverse[:, None] * scale[None] + bias[None], mask)
    store(mean_ref.at[row], mean, has_row)
    store(inverse_ref.at[row], inverse, has_row)


def _norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    y, mean, inverse = _normalise(x, scale, bias, epsilon)
    return (x, y), (x, scale, bias, mean, inverse)


def _norm_backward(
    epsilon: float, saved: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = saved
    rows = as_rows(x)
    block_rows, block_width = _row_block(rows.shape[1])
    num_groups, rounds = divide(len(rows), block_rows, 1)
    kernel = functools.partial(_norm_backward_kernel, rounds=rounds, block_rows=block_rows, block_width=block_width)
    of_group = jax.ShapeDtypeStruct((num_groups, rows.shape[1]), jnp.float32)
    dx, dscale, dbias = call(
        kernel, (num_groups,), (jax.ShapeDtypeStruct(rows.shape, x.dtype), of_group, of_group), "norm_backward"
    )(rows, *map(as_rows, cotangents), scale, mean, inverse)
    return dx.reshape(x.shape), dscale.sum(axis=0).astype(scale.dtype), dbias.sum(axis=0).astype(bias.dtype)


def _norm_backward_kernel(
    x_ref: Any, skip_ref: Any, dy_ref: Any, scale_ref: Any, mean_ref: Any, inverse_ref: Any, dx_ref: Any,
    dscale_ref: Any, dbias_ref: Any, *, rounds: int, block_rows: int, block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    channel = jnp.arange(block_width)
    has_channel = channel < width
    scale = load(scale_ref.at[channel], has_channel)

    def term(row: Array, mask: Array) -> tuple[Array, Array]:
        place, has_row = (row[:, None], channel[None]), row < num_rows
        x, dy = load(x_ref.at[place], mask), load(dy_ref.at[place], mask)
        mean, inverse = load(mean_ref.at[row], has_row), load(inverse_ref.at[row], has_row)
        # Where the mask is off, dy is 0.
        normalised = (x - mean[:, None]) * inverse[:, None]
        scaled = dy * scale[None]
        along = jnp.sum(scaled * normalised, axis=1) / width
        level = jnp.sum(scaled, axis=1) / width
        dx = (scaled - level[:, None] - normalised * along[:, None]) * inverse[:, None]
        store(dx_ref.at[place], dx + load(skip_ref.at[place], mask), mask)
        return dy * normalised, dy

    dscale, dbias = add_up(term, has_channel, num_rows=num_rows, rounds=rounds, block_rows=block_rows, at_once=True)
    store(dscale_ref.at[pl.program_id(0), channel], dscale, has_channel)
    store(dbias_ref.at[pl.program_id(0), channel], dbias, has_channel)


def _bias_gelu_kernel(x_ref: Any, bias_ref: Any, y_ref: Any, *, block_rows: int, block_width: int) -> None:
    num_rows, width = x_ref.shape
    row = pl.program_id(0) * block_rows + jnp.arange(block_rows)
    channel = pl.program_id(1) * block_width + jnp.arange(block_width)
    has_channel = channel < width
    mask, place = (row < num_rows)[:, None] & has_channel[None], (row[:, None], channel[None])
    shifted = load(x_ref.at[place], mask) + load(bias_ref.at[channel], has_channel)[None]
    store(y_ref.at[place], gelu_value(shifted), mask)


def _bias_gelu_forward(x: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return bias_gelu(x, bias), (x, bias)


def _bias_gelu_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, bias = saved
    rows = as_rows(x)
    block_rows, block_width = channel_block(rows.shape[1])
    num_parts = pl.cdiv(rows.shape[1], block_width)
    num_groups, rounds = divide(len(rows), block_rows, num_parts)
    kernel = functools.partial(
        _bias_gelu_backward_kernel, rounds=rounds, block_rows=block_rows, block_width=block_width
    )
    outputs = (
        jax.ShapeDtypeStruct(rows.shape, x.dtype),
        jax.ShapeDtypeStruct((num_groups, rows.shape[1]), jnp.float32),
    )
    dx, dbias = call(kernel, (num_groups, num_parts), outputs, "bias_gelu_backward")(rows, bias, as_rows(cotangent))
    return dx.reshape(x.shape), dbias.sum(axis=0).astype(bias.dtype)


def _bias_gelu_backward_kernel(
    x_ref: Any, bias_ref: Any, dy_ref: Any, dx_ref: Any, dbias_ref: Any, *, rounds: int, block_rows: int,
    block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    channel = pl.program_id(1) * block_width + jnp.arange(block_width)
    has_channel = channel < width
    bias = load(bias_ref.at[channel], has_channel)

    def term(row: Array, mask: Array) -> tuple[Array, Array]:
        place = (row[:, None], channel[None])
        dx = load(dy_ref.at[place], mask) * gelu_derivative(load(x_ref.at[place], mask) + bias[None])
        store(dx_ref.at[place], dx, mask)
        return dx, dx

    dbias, _ = add_up(term, has_channel, num_rows=num_rows, rounds=rounds, block_rows=block_rows)
    store(dbias_ref.at[pl.program_id(0), channel], dbias, has_channel)


skip_and_norm.defvjp(_norm_forward, _norm_backward)
bias_gelu.defvjp(_bias_gelu_forward, _bias_gelu_backward)


def _row_block(width: int) -> tuple[int, int]:
    """Return the rows and channels of a block that holds whole rows."""
    block_width = pl.next_power_of_2(width)
    return max(BLOCK // block_width, 1), block_width
