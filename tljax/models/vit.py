"""Vision Transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) and DINOv2 (Oquab et al. 2023, arXiv:2304.07193).

Differences between the published models are fields of `VitConfig`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.net import HEAD, NORM, pool

EMBED = "embed"


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """What distinguishes one Vision Transformer from another.

    Args:
        depth: number of blocks.
        width: of a token.
        num_heads: of each attention layer; divides `width`.
        patch_size: side of a patch in pixels.
        image_size: side of the square image in pixels, a multiple of `patch_size`.
        num_classes: 0 leaves the head without a classifier: it returns the pooled features.
        mlp_ratio: hidden width of a block's MLP over `width`.
        use_layer_scale: scale each residual branch per channel (Touvron et al. 2021, arXiv:2103.17239), as DINOv2.
        pooling: what the classifier reads; see `Net.pool`. DINOv2's own linear heads read "cls_mean".
        norm_epsilon: 1e-6 in timm, AugReg and DINOv2; 1e-12 in Hugging Face's ViT.
    """

    depth: int
    width: int
    num_heads: int
    patch_size: int
    image_size: int
    num_classes: int = 0
    mlp_ratio: int = 4
    use_layer_scale: bool = False
    pooling: str = "cls"
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            lower = self.image_size - self.image_size % self.patch_size
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"the nearest are {lower} and {lower + self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        return (EMBED, *(f"block_{index:02d}" for index in range(self.depth)), NORM, HEAD)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token."""
        return 1

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage."""
        if stage == EMBED:
            return Embed(self, rngs)
        if stage == NORM:
            return Norm(self, rngs)
        if stage == HEAD:
            return Head(self, rngs)
        return Block(self, rngs)


class Embed(nnx.Module):
    """Images to tokens: patches projected, class token in front, positions added."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        patch = (config.patch_size, config.patch_size)
        # A stride equal to the kernel: no padding, no overlap.
        self.patch = nnx.Conv(3, config.width, patch, strides=patch, padding="VALID", rngs=rngs)
        normal = nnx.initializers.truncated_normal(0.02)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, config.width)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1, 1 + config.grid**2, config.width)))
        self.image_shape = (config.image_size, config.image_size, 3)

    def __call__(self, x: Array, *, is_training: bool) -> Float[Array, "b n d"]:
        if x.shape[1:] != self.image_shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"images are {x.dtype} of shape {x.shape}, wanted floats of shape {('b', *self.image_shape)}; "
                "`Preprocess` resizes and crops an image, and `Preprocess.normalise` turns bytes into floats"
            )
        patches = self.patch(x)
        tokens = patches.reshape(patches.shape[0], -1, patches.shape[-1])  # b h w d -> b (h w) d
        cls_token = jnp.broadcast_to(self.cls_token[...], (tokens.shape[0], 1, tokens.shape[-1]))
        return jnp.concatenate([cls_token, tokens], axis=1) + self.pos_embed[...]


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.query = nnx.Linear(config.width, config.width, rngs=rngs)
        self.key = nnx.Linear(config.width, config.width, rngs=rngs)
        self.value = nnx.Linear(config.width, config.width, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        batch, tokens, width = x.shape
        heads = (batch, tokens, self.num_heads, width // self.num_heads)
        query, key, value = (
            layer(x).reshape(heads)  # b n (heads d) -> b n heads d
            for layer in (self.query, self.key, self.value)
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return self.out(mixed.reshape(batch, tokens, width))  # b n heads d -> b n (heads d)


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        hidden = config.width * config.mlp_ratio
        self.fc1 = nnx.Linear(config.width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class LayerScale(nnx.Module):
    """One factor a channel on a residual branch."""

    def __init__(self, config: VitConfig):
        self.scale = nnx.Param(jnp.full((config.width,), 1e-5, jnp.float32))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * self.scale[...][None, None]


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(config, rngs)
        self.attn = Attention(config, rngs)
        self.norm2 = _layer_norm(config, rngs)
        self.mlp = Mlp(config, rngs)
        self.use_layer_scale = config.use_layer_scale
        if config.use_layer_scale:
            self.layer_scale1 = LayerScale(config)
            self.layer_scale2 = LayerScale(config)

    def __call__(self, x: Float[Array, "b n d"], *, is_training: bool) -> Float[Array, "b n d"]:
        attended = self.attn(self.norm1(x))
        x = x + (self.layer_scale1(attended) if self.use_layer_scale else attended)
        mapped = self.mlp(self.norm2(x))
        return x + (self.layer_scale2(mapped) if self.use_layer_scale else mapped)


class Norm(nnx.Module):
    """The norm after the last block."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        # Params of a stage sit directly under its name: "norm/scale".
        self.scale = nnx.Param(jnp.ones((config.width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((config.width,), jnp.float32))
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "b n d"], *, is_training: bool) -> Float[Array, "b n d"]:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
        return normalised * self.scale[...][None, None] + self.bias[...][None, None]


class Head(nnx.Module):
    """Pooling and, when there are classes, a linear classifier that starts at zero."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.pooling = config.pooling
        self.prefix_tokens = config.prefix_tokens
        self.num_classes = config.num_classes
        if config.num_classes:
            width = config.width * (2 if config.pooling == "cls_mean" else 1)
            zeros = nnx.initializers.zeros
            self.linear = nnx.Linear(width, config.num_classes, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], *, is_training: bool) -> Float[Array, "b k"]:
        pooled = pool(x, self.pooling, self.prefix_tokens)
        return self.linear(pooled) if self.num_classes else pooled


def _layer_norm(config: VitConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits when the mean is large beside the spread.
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)
