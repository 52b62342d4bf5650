"""What the Pallas kernels of `fused` and `fused_batch_norm` have in common: they go over the rows of a matrix once.

Sums over rows are taken in groups of rows, one program of the GPU each, and XLA adds the groups. Triton wants blocks of
powers of two, so that rows and channels are masked. Elsewhere than on a GPU the kernels are interpreted, which is for
tests.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from tljax.models.kernels import platform

# Eight for each of the 132 processors of an H100, as many as run at a time; fewer wait for memory.
_PROGRAMS = 1056
# Numbers that a program holds at a time, 32 a thread.
BLOCK = 4096
CHANNELS = 256


def as_rows(x: Array) -> Array:
    """Return a matrix of all rows of the last axis."""
    return x.reshape(-1, x.shape[-1])  # ... d -> rows d


def load(ref: Any, mask: Array) -> Array:
    """Read numbers in float32, zeros where the mask is off."""
    return triton.load(ref, mask=mask, other=0).astype(jnp.float32)


def store(ref: Any, value: Array, mask: Array) -> None:
    """Write numbers where the mask is on."""
    triton.store(ref, value.astype(ref.dtype), mask=mask)


def call(kernel: Any, grid: tuple[int, ...], outputs: Any, name: str) -> Any:
    """Return the kernel as a function of arrays."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=platform() not in ("cuda", "rocm"),
        name=name,
    )


def divide(num_rows: int, block_rows: int, programs_a_group: int) -> tuple[int, int]:
    """Return the number of groups of rows, and the blocks of each."""
    num_blocks = math.ceil(num_rows / block_rows)
    rounds = math.ceil(num_blocks / max(_PROGRAMS // programs_a_group, 1))
    return math.ceil(num_blocks / rounds), rounds


def channel_block(width: int) -> tuple[int, int]:
    """Return the rows and channels of a block that may hold a part of a row."""
    block_width = min(CHANNELS, pl.next_power_of_2(width))
    return BLOCK // block_width, block_width


def add_up(
    term: Callable[[Array, Array], Sequence[Array]], has_channel: Array, *, num_rows: int, rounds: int, block_rows: int,
    at_once: bool = False,
) -> list[Array]:  # fmt: skip
    """Inside of a kernel: add up over the blocks of the group of rows that it is called for.

    Args:
        term: the numbers of rows, and the mask [rows channels] -> two arrays [rows channels], zeros where that is off.
        has_channel: mask of the channels.
        num_rows: of the matrix.
        rounds: blocks of a group.
        block_rows: rows of a block.
        at_once: add up the rows of each block, and not of all at the end: better where a block holds few.

    Returns:
        The sums over the rows, of each channel.
    """
    group = pl.program_id(0)

    def add(index: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        row = (group * rounds + index) * block_rows + jnp.arange(block_rows)
        first, second = term(row, (row < num_rows)[:, None] & has_channel[None])
        if at_once:
            first, second = jnp.sum(first, axis=0), jnp.sum(second, axis=0)
        return sums[0] + first, sums[1] + second

    zeros = jnp.zeros(has_channel.shape if at_once else (block_rows, *has_channel.shape), jnp.float32)
    sums = jax.lax.fori_loop(0, rounds, add, (zeros, zeros))
    # Threads have to meet to add up rows.
    return list(sums) if at_once else [jnp.sum(total, axis=0) for total in sums]
