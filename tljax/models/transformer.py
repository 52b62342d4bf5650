"""Layers of Vision Transformers, and the stages after their last block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.attention import attend
from tljax.models.gelu import gelu
from tljax.models.kernels import CHEAP, PALLAS, XLA, Kernels, attention_way, gelu_way, own_way
from tljax.models.noise import Noise, drop_branch, drop_units
from tljax.models.normalisation import LayerNorm
from tljax.models.pooling import pool

GELU = "gelu"
# Where each comes from: erf in timm, Hugging Face, DeiT, MAE, DINO and LAION's CLIP; tanh in Google's ViT and SigLIP;
# the sigmoid in OpenAI's CLIP.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    GELU: lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
SWIGLU = "swiglu"
CLS_DISTILLATION = "cls_distillation"


class Attention(nnx.Module):
    """Multi-head attention; of tokens to themselves where no context is given.

    To a context, it is computed by XLA.
    """

    def __init__(self, width: int, num_heads: int, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"] | None = None, *, kernels: Kernels | None = None,
        num_tokens: int | None = None,
    ) -> Float[Array, "b n d"]:  # fmt: skip
        read = x if context is None else context
        query, key, value = self._heads(self.query(x)), self._heads(self.key(read)), self._heads(self.value(read))
        way = XLA
        if context is None and kernels is not None:
            way = attention_way(kernels, query.dtype, query.shape[-1])
        mixed = attend(query, key, value, way=way, num_tokens=num_tokens)
        return self.out(mixed.reshape(x.shape))  # b n heads e -> b n (heads e)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)  # b n (heads e) -> b n heads e


class Mlp(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden_width: int, activation: str, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = nnx.Linear(width, hidden_width, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], *, kernels: Kernels | None = None) -> Float[Array, "b n d"]:
        if self.activation != GELU or kernels is None:
            return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
        if own_way("bias_gelu", kernels) == PALLAS:
            from tljax.models.fused import bias_gelu

            assert self.fc1.bias is not None
            return self.fc2(bias_gelu(x @ self.fc1.kernel[...], self.fc1.bias[...]))
        hidden = self.fc1(x)
        return self.fc2(gelu(hidden) if gelu_way(kernels) == CHEAP else ACTIVATIONS[GELU](hidden))


class GatedMlp(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): one linear layer gates another."""

    def __init__(self, width: int, hidden_width: int, rngs: nnx.Rngs):
        self.gate = nnx.Linear(width, hidden_width, rngs=rngs)
        self.fc1 = nnx.Linear(width, hidden_width, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.silu(self.gate(x)) * self.fc1(x))


class LayerScale(nnx.Module):
    """One factor a channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.full((width,), 1e-5, jnp.float32))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * self.scale[...][None, None]


class AttentionPool(nnx.Module):
    """Multi-head attention pooling: a learned query reads all tokens, then a residual MLP (SigLIP, arXiv:2303.15343).

    Source: big_vision/models/vit.py, MAPHead.
    """

    def __init__(self, width: int, num_heads: int, mlp: Mlp, norm: LayerNorm, rngs: nnx.Rngs):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, width)))
        self.attn = Attention(width, num_heads, rngs)
        self.norm = norm
        self.mlp = mlp

    def __call__(self, x: Float[Array, "b n d"], *, is_training: bool) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[-1]))
        pooled = self.attn(probe, x)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class Norm(nnx.Module):
    """The norm after the last block: of every token, or of the pooled features where `pooling` says how to pool."""

    def __init__(self, width: int, epsilon: float, pooling: str | None, prefix_tokens: int):
        # Params of a stage sit directly under its name: "norm/scale".
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon, self.pooling, self.prefix_tokens = epsilon, pooling, prefix_tokens

    def __call__(self, x: Float[Array, "b n d"], *, is_training: bool) -> Float[Array, "b *n d"]:
        if self.pooling is not None:
            x = pool(x, self.pooling, self.prefix_tokens)
        # In float32, as NNX's LayerNorm: half precision loses digits in a mean.
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normalised = (centred * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)
        over = (None,) * (x.ndim - 1)
        return normalised * self.scale[...][over] + self.bias[...][over]


class PreLogits(nnx.Module):
    """Pooling, unless a stage before has pooled, a linear layer and tanh."""

    def __init__(self, width: int, representation_width: int, pooling: str, prefix_tokens: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, representation_width, rngs=rngs)
        self.pooling, self.prefix_tokens = pooling, prefix_tokens

    def __call__(self, x: Float[Array, "b *n d"], *, is_training: bool) -> Float[Array, "b r"]:
        pooled = x if x.ndim == 2 else pool(x, self.pooling, self.prefix_tokens)
        return jnp.tanh(self.linear(pooled))


class Head(nnx.Module):
    """Pooling, unless a stage before has pooled, and a linear classifier that starts at zero, if there are classes."""

    def __init__(self, width: int, num_classes: int, pooling: str, prefix_tokens: int, use_bias: bool, rngs: nnx.Rngs):
        self.pooling, self.prefix_tokens, self.num_classes = pooling, prefix_tokens, num_classes
        zeros = nnx.initializers.zeros
        settings = {"use_bias": use_bias, "kernel_init": zeros, "bias_init": zeros, "rngs": rngs}
        if num_classes:
            self.linear = nnx.Linear(width, num_classes, **settings)
        if num_classes and pooling == CLS_DISTILLATION:
            self.distillation = nnx.Linear(width, num_classes, **settings)

    def __call__(
        self, x: Float[Array, "b *n d"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b k"]:
        if self.num_classes and self.pooling == CLS_DISTILLATION:
            pair = drop_units(x[:, :2], noise)
            return (self.linear(pair[:, 0]) + self.distillation(pair[:, 1])) / 2
        pooled = x if x.ndim == 2 else pool(x, self.pooling, self.prefix_tokens)
        return self.linear(drop_units(pooled, noise)) if self.num_classes else pooled


def prepend(prefix: Sequence[Any], tokens: Array) -> Array:
    """Put tokens that all images share before those of each."""
    shared = [jnp.broadcast_to(token, (tokens.shape[0], *token.shape[1:])) for token in prefix]
    return jnp.concatenate([*shared, tokens], axis=1) if shared else tokens


class Block(nnx.Module):
    """Pre-norm transformer block; behind `num_tokens` its tokens are filled up with others, which nobody reads."""

    def __init__(
        self, width: int, hidden_width: int, num_heads: int, activation: str, epsilon: float, rngs: nnx.Rngs, *,
        use_layer_scale: bool,
    ):  # fmt: skip
        self.norm1 = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attn = Attention(width, num_heads, rngs)
        self.norm2 = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.is_gated = activation == SWIGLU
        if self.is_gated:
            self.mlp: nnx.Module = GatedMlp(width, hidden_width, rngs)
        else:
            self.mlp = Mlp(width, hidden_width, activation, rngs)
        self.use_layer_scale = use_layer_scale
        if use_layer_scale:
            self.layer_scale1 = LayerScale(width)
            self.layer_scale2 = LayerScale(width)

    def __call__(
        self, x: Float[Array, "b n d"], *, is_training: bool, noise: Noise | None = None, kernels: Kernels,
        num_tokens: int,
    ) -> Float[Array, "b n d"]:  # fmt: skip
        x, normalised = self.norm1.beside(x, kernels=kernels)
        attended = self.attn(normalised, kernels=kernels, num_tokens=num_tokens)
        attended = self.layer_scale1(attended) if self.use_layer_scale else attended
        x = x + drop_branch(attended, noise, branch=0)
        x, normalised = self.norm2.beside(x, kernels=kernels)
        mapped = self.mlp(normalised) if self.is_gated else self.mlp(normalised, kernels=kernels)
        mapped = self.layer_scale2(mapped) if self.use_layer_scale else mapped
        return x + drop_branch(mapped, noise, branch=1)
