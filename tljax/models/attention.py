"""Attention of tokens to themselves, which may be filled up to the numbers of tokens that cuDNN's kernel takes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.models.kernels import CUDNN, Kernels, attention_way

# cuDNN refuses 197 tokens; 208 cost 4 % more time than 200 on an H100.
MULTIPLE = 8


def fill(tokens: Float[Array, "b n d"], kernels: Kernels, dtype: Any, head_width: int) -> Float[Array, "b m d"]:
    """Append tokens of zeros, where that lets cuDNN mix them."""
    way = attention_way(kernels, dtype, head_width)
    missing = -tokens.shape[1] % MULTIPLE if way == CUDNN else 0
    return jnp.pad(tokens, ((0, 0), (0, missing), (0, 0))) if missing else tokens


def attend(
    query: Float[Array, "b n heads e"],
    key: Float[Array, "b m heads e"],
    value: Float[Array, "b m heads e"],
    *,
    way: str,
    num_tokens: int | None = None,
) -> Float[Array, "b n heads e"]:
    """Mix values by the softmax of query and key products.

    Args:
        query: of the tokens that read.
        key: of those that are read.
        value: likewise.
        way: "cudnn" or "xla".
        num_tokens: how many there are without those that they are filled up with, which nobody reads, and which read
            zeros; tokens attend to themselves then. None where there are no others.
    """
    # Its annotations have two names and no string.
    attention: Any = jax.nn.dot_product_attention
    if num_tokens is None or num_tokens == query.shape[1]:
        return attention(query, key, value, implementation=way)
    lengths = jnp.full((query.shape[0],), num_tokens, jnp.int32)
    return attention(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=way)
