"""Kernels for GPUs, in Pallas: LayerNorm, and the backward pass of a bias and a GELU.

XLA goes over the cotangents several times: for those of the input, of the scale and of the bias. These go once, and
add up what concerns a channel per group of rows; XLA adds the groups. Triton wants blocks of powers of two, so that
rows and channels are masked. Elsewhere than on a GPU they are interpreted, which is for tests.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from tljax.models.gelu import gelu, gelu_derivative
from tljax.models.kernels import platform

# Some for each of the 132 processors of an H100, so that the sums of the groups stay small beside what is read.
_GROUPS = 512
# Numbers that a program holds at a time, 32 a thread.
_BLOCK = 4096
_CHANNELS = 256


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalise the last axis in float32, as `normalisation.LayerNorm`, and return the dtype of x."""
    return _normalise(x, scale, bias, epsilon)[0]


def bias_gelu(x: Array, bias: Array) -> Array:
    """Return `gelu(x + bias)`, the sum in float32; bias is of the last axis."""
    return _bias_gelu(x, bias)


@jax.custom_vjp
def _bias_gelu(x: Array, bias: Array) -> Array:
    return gelu(_shifted(x, bias)).astype(x.dtype)


def _shifted(x: Array, bias: Array) -> Array:
    return x.astype(jnp.float32) + bias.astype(jnp.float32)[(None,) * (x.ndim - 1)]


def _normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    rows, width = _as_rows(x)
    block_rows, block_width = _row_block(width)
    kernel = functools.partial(_normalise_kernel, epsilon=epsilon, block_rows=block_rows, block_width=block_width)
    of_row = jax.ShapeDtypeStruct((len(rows),), jnp.float32)
    y, mean, scale_back = _call(
        kernel, (pl.cdiv(len(rows), block_rows),), (jax.ShapeDtypeStruct(rows.shape, x.dtype), of_row, of_row), "norm"
    )(rows, scale, bias)
    return y.reshape(x.shape), mean, scale_back


def _normalise_kernel(
    x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any, mean_ref: Any, inverse_ref: Any, *, epsilon: float,
    block_rows: int, block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    row = pl.program_id(0) * block_rows + jnp.arange(block_rows)
    channel = jnp.arange(block_width)
    has_row, has_channel = row < num_rows, channel < width
    mask = has_row[:, None] & has_channel[None]
    x = _load(x_ref.at[row[:, None], channel[None]], mask)
    mean = jnp.sum(x, axis=1) / width
    centred = jnp.where(mask, x - mean[:, None], 0.0)
    inverse = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1) / width + epsilon)
    scale, bias = (_load(ref.at[channel], has_channel) for ref in (scale_ref, bias_ref))
    y = centred * inverse[:, None] * scale[None] + bias[None]
    triton.store(y_ref.at[row[:, None], channel[None]], y.astype(y_ref.dtype), mask=mask)
    triton.store(mean_ref.at[row], mean, mask=has_row)
    triton.store(inverse_ref.at[row], inverse, mask=has_row)


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    y, mean, inverse = _normalise(x, scale, bias, epsilon)
    return y, (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = saved
    rows, width = _as_rows(x)
    block_rows, block_width = _row_block(width)
    num_groups, rounds = _groups(len(rows), block_rows)
    kernel = functools.partial(
        _layer_norm_backward_kernel, rounds=rounds, block_rows=block_rows, block_width=block_width
    )
    of_group = jax.ShapeDtypeStruct((num_groups, width), jnp.float32)
    dx, dscale, dbias = _call(
        kernel, (num_groups,), (jax.ShapeDtypeStruct(rows.shape, x.dtype), of_group, of_group), "norm_backward"
    )(rows, cotangent.reshape(rows.shape), scale, mean, inverse)
    return dx.reshape(x.shape), dscale.sum(axis=0).astype(scale.dtype), dbias.sum(axis=0).astype(bias.dtype)


def _layer_norm_backward_kernel(
    x_ref: Any, dy_ref: Any, scale_ref: Any, mean_ref: Any, inverse_ref: Any, dx_ref: Any, dscale_ref: Any,
    dbias_ref: Any, *, rounds: int, block_rows: int, block_width: int,
) -> None:  # fmt: skip
    num_rows, width = x_ref.shape
    group, channel = pl.program_id(0), jnp.arange(block_width)
    has_channel = channel < width
    scale = _load(scale_ref.at[channel], has_channel)

    def add(index: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        row = (group * rounds + index) * block_rows + jnp.arange(block_rows)
        has_row = row < num_rows
        mask = has_row[:, None] & has_channel[None]
        place = (row[:, None], channel[None])
        x, dy = _load(x_ref.at[place], mask), _load(dy_ref.at[place], mask)
        mean, inverse = _load(mean_ref.at[row], has_row), _load(inverse_ref.at[row], has_row)
        # Where the mask is off, dy is 0.
        normalised = (x - mean[:, None]) * inverse[:, None]
        scaled = dy * scale[None]
        along = jnp.sum(scaled * normalised, axis=1) / width
        level = jnp.sum(scaled, axis=1) / width
        dx = (scaled - level[:, None] - normalised * along[:, None]) * inverse[:, None]
        triton.store(dx_ref.at[place], dx.astype(dx_ref.dtype), mask=mask)
        return sums[0] + jnp.sum(dy * normalised, axis=0), sums[1] + jnp.sum(dy, axis=0)

    zeros = jnp.zeros((block_width,), jnp.float32)
    dscale, dbias = jax.lax.fori_loop(0, rounds, add, (zeros, zeros))
    triton.store(dscale_ref.at[group, channel], dscale, mask=has_channel)
    triton.store(dbias_ref.at[group, channel], dbias, mask=has_channel)


def _bias_gelu_forward(x: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _bias_gelu(x, bias), (x, bias)


def _bias_gelu_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, bias = saved
    rows, width = _as_rows(x)
    block_rows = _BLOCK // _CHANNELS
    num_groups, rounds = _groups(len(rows), block_rows)
    kernel = functools.partial(_bias_gelu_backward_kernel, rounds=rounds, block_rows=block_rows)
    outputs = jax.ShapeDtypeStruct(rows.shape, x.dtype), jax.ShapeDtypeStruct((num_groups, width), jnp.float32)
    dx, dbias = _call(kernel, (num_groups, pl.cdiv(width, _CHANNELS)), outputs, "bias_gelu_backward")(
        rows, bias, cotangent.reshape(rows.shape)
    )
    return dx.reshape(x.shape), dbias.sum(axis=0).astype(bias.dtype)


def _bias_gelu_backward_kernel(
    x_ref: Any, bias_ref: Any, dy_ref: Any, dx_ref: Any, dbias_ref: Any, *, rounds: int, block_rows: int
) -> None:
    num_rows, width = x_ref.shape
    group, channel = pl.program_id(0), pl.program_id(1) * _CHANNELS + jnp.arange(_CHANNELS)
    has_channel = channel < width
    bias = _load(bias_ref.at[channel], has_channel)

    def add(index: Any, total: Array) -> Array:
        row = (group * rounds + index) * block_rows + jnp.arange(block_rows)
        mask = (row < num_rows)[:, None] & has_channel[None]
        place = (row[:, None], channel[None])
        dx = _load(dy_ref.at[place], mask) * gelu_derivative(_load(x_ref.at[place], mask) + bias[None])
        triton.store(dx_ref.at[place], dx.astype(dx_ref.dtype), mask=mask)
        return total + jnp.sum(dx, axis=0)

    dbias = jax.lax.fori_loop(0, rounds, add, jnp.zeros((_CHANNELS,), jnp.float32))
    triton.store(dbias_ref.at[group, channel], dbias, mask=has_channel)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
_bias_gelu.defvjp(_bias_gelu_forward, _bias_gelu_backward)


def _load(ref: Any, mask: Array) -> Array:
    return triton.load(ref, mask=mask, other=0).astype(jnp.float32)


def _as_rows(x: Array) -> tuple[Array, int]:
    return x.reshape(-1, x.shape[-1]), x.shape[-1]  # ... d -> rows d


def _row_block(width: int) -> tuple[int, int]:
    """Return the rows and channels of a block that holds whole rows."""
    block_width = pl.next_power_of_2(width)
    return max(_BLOCK // block_width, 1), block_width


def _groups(num_rows: int, block_rows: int) -> tuple[int, int]:
    """Return the number of groups of rows, and the blocks of each."""
    num_blocks = math.ceil(num_rows / block_rows)
    rounds = math.ceil(num_blocks / _GROUPS)
    return math.ceil(num_blocks / rounds), rounds


def _call(kernel: Any, grid: tuple[int, ...], outputs: Any, name: str) -> Any:
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=platform() not in ("cuda", "rocm"),
        name=name,
    )
