"""From tokens or feature maps to one vector an image."""

import jax
import jax.numpy as jnp

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
