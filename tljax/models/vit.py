"""Vision Transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) and what was made of them.

AugReg, DeiT, MAE, DINO, DINOv2, and the image towers of CLIP and SigLIP: their differences are fields of `VitConfig`.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.folded import project_patches
from tljax.models.net import HEAD, NORM
from tljax.models.normalisation import LayerNorm
from tljax.models.transformer import (
    ACTIVATIONS,
    CLS_DISTILLATION,
    SWIGLU,
    AttentionPool,
    Block,
    Head,
    Mlp,
    Norm,
    PreLogits,
    prepend,
)
from tljax.paths import did_you_mean

EMBED, POOL, PRE_LOGITS = "embed", "pool", "pre_logits"
ATTENTION = "attention"
PAIRS = ("cls_mean", CLS_DISTILLATION)
POOLINGS = ("cls", "mean", *PAIRS, ATTENTION)


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """What distinguishes one Vision Transformer from another.

    Args:
        depth: number of blocks.
        width: of a token.
        num_heads: of each attention layer; divides `width`.
        patch_size: side of a patch in pixels.
        image_size: side of the square image, or (height, width), in pixels; multiples of `patch_size`.
        has_partial_patches: they need not be; what is right of or below the last whole patch is not seen (SigLIP).
        num_classes: 0 leaves the head without a classifier: it returns the pooled features.
        in_channels: of the images.
        mlp_width: hidden width of a block's MLP; None is 4 * `width`.
        activation: "gelu" (erf), "gelu_tanh" (Google's), "quick_gelu" (OpenAI's CLIP) or "swiglu" (DINOv2's giant).
        has_class_token: all but SigLIP.
        has_distillation_token: a second token that a teacher's classes were learned with (DeiT, arXiv:2012.12877).
        num_registers: tokens without a position or a meaning (Darcet et al. 2023, arXiv:2309.16588).
        has_prefix_positions: class and distillation token have position embeddings too.
        has_patch_bias: all but CLIP.
        has_embed_norm: normalise the tokens before the first block (CLIP).
        use_layer_scale: scale each residual branch per channel (DINOv2).
        norm_epsilon: 1e-6 in timm, AugReg and DINOv2; 1e-12 in Hugging Face's ViT; 1e-5 in CLIP.
        is_norm_after_pooling: pool, then normalise (timm's fc_norm, of fine-tuned MAE); else the other way round.
        pooling: what the classifier reads; see `Net.pool`. "cls_distillation" is the mean of the two tokens'
            scores; "attention" is a stage of its own, "pool". DINOv2's linear heads read "cls_mean".
        representation_width: of a tanh layer before the classifier, a stage of its own, "pre_logits", as in the
            first ViTs; 0 for none.
        has_head_bias: all but the projections of CLIP.
    """

    depth: int
    width: int
    num_heads: int
    patch_size: int
    image_size: int | tuple[int, int]
    num_classes: int = 0
    in_channels: int = 3
    mlp_width: int | None = None
    activation: str = "gelu"
    has_class_token: bool = True
    has_distillation_token: bool = False
    num_registers: int = 0
    has_prefix_positions: bool = True
    has_patch_bias: bool = True
    has_embed_norm: bool = False
    use_layer_scale: bool = False
    norm_epsilon: float = 1e-6
    is_norm_after_pooling: bool = False
    pooling: str = "cls"
    representation_width: int = 0
    has_head_bias: bool = True
    has_partial_patches: bool = False

    def __post_init__(self) -> None:
        for name in ("depth", "width", "num_heads", "patch_size", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 1 or more")
        # One spelling of a square and of the usual MLP, so that equal nets are equal.
        height, width = self.image_shape[:2]
        if height == width:
            object.__setattr__(self, "image_size", height)
        if self.mlp_width == 4 * self.width:
            object.__setattr__(self, "mlp_width", None)
        for side in (height, width):
            if side < self.patch_size or (side % self.patch_size and not self.has_partial_patches):
                lower = max(side - side % self.patch_size, self.patch_size)
                raise ValueError(
                    f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                    f"the nearest are {lower} and {lower + self.patch_size}"
                )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        for name, known in (("activation", (*ACTIVATIONS, SWIGLU)), ("pooling", POOLINGS)):
            if getattr(self, name) not in known:
                near = did_you_mean(getattr(self, name), known)
                raise ValueError(f"{name} {getattr(self, name)!r} is not known{near}; known: {', '.join(known)}")
        self._check_pooling()

    def _check_pooling(self) -> None:
        pooling, is_pair, is_attention = f"pooling {self.pooling!r}", self.pooling in PAIRS, self.pooling == ATTENTION
        lacks_distillation = self.pooling == CLS_DISTILLATION and not self.has_distillation_token
        refused = {
            f"{pooling} needs has_class_token": self.pooling.startswith("cls") and not self.has_class_token,
            f"{pooling} needs has_distillation_token": lacks_distillation,
            f"{pooling} excludes is_norm_after_pooling": self.is_norm_after_pooling and (is_pair or is_attention),
            f"{pooling} excludes representation_width": self.representation_width and is_pair,
            f"{pooling} excludes activation {SWIGLU!r}": self.activation == SWIGLU and is_attention,
        }
        if any(refused.values()):
            raise ValueError("; ".join(problem for problem, is_refused in refused.items() if is_refused))

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        pools = (POOL,) * (self.pooling == ATTENTION) + (PRE_LOGITS,) * bool(self.representation_width)
        return (EMBED, *self.branch_stages, NORM, *pools, HEAD)

    @property
    def branch_stages(self) -> tuple[str, ...]:
        """Stages with residual branches, in order of depth."""
        return tuple(f"block_{index:02d}" for index in range(self.depth))

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        """Stages that drop units."""
        return (HEAD,)

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        """Stages that choose between ways to compute the same thing."""
        return self.branch_stages

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.width // self.num_heads

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        size = self.image_size
        return (*(size if isinstance(size, tuple) else (size, size)), self.in_channels)

    @property
    def positioned_prefix_tokens(self) -> int:
        """Tokens before the patches that have position embeddings."""
        return self.has_prefix_positions * (self.has_class_token + self.has_distillation_token)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.has_class_token + self.has_distillation_token + self.num_registers

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.patch_size, width // self.patch_size

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage."""
        if stage == EMBED:
            return Embed(self, rngs)
        if stage == NORM:
            before = self.pooling if self.is_norm_after_pooling else None
            return Norm(self.width, self.norm_epsilon, before, self.prefix_tokens)
        if stage == POOL:
            mlp = Mlp(self.width, self.hidden_width, self.activation, rngs)
            norm = LayerNorm(self.width, epsilon=self.norm_epsilon, rngs=rngs)
            return AttentionPool(self.width, self.num_heads, mlp, norm, rngs)
        if stage == PRE_LOGITS:
            return PreLogits(self.width, self.representation_width, self.pooling, self.prefix_tokens, rngs)
        if stage == HEAD:
            width = (self.representation_width or self.width) * (2 if self.pooling == "cls_mean" else 1)
            return Head(width, self.num_classes, self.pooling, self.prefix_tokens, self.has_head_bias, rngs)
        return Block(
            self.width, self.hidden_width, self.num_heads, self.activation, self.norm_epsilon, rngs,
            use_layer_scale=self.use_layer_scale,
        )  # fmt: skip

    @property
    def hidden_width(self) -> int:
        """Hidden width of a block's MLP."""
        return self.mlp_width or 4 * self.width


class Embed(nnx.Module):
    """Images to tokens: patches projected, special tokens in front, positions added."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        patch = (config.patch_size, config.patch_size)
        # A stride equal to the kernel: no padding, no overlap.
        self.patch = nnx.Conv(
            config.in_channels, config.width, patch, strides=patch, padding="VALID", use_bias=config.has_patch_bias,
            rngs=rngs,
        )  # fmt: skip
        normal = nnx.initializers.truncated_normal(0.02)
        draw = lambda tokens: nnx.Param(normal(rngs.params(), (1, tokens, config.width)))  # noqa: E731
        if config.has_class_token:
            self.cls_token = draw(1)
        if config.has_distillation_token:
            self.distillation_token = draw(1)
        if config.num_registers:
            self.registers = draw(config.num_registers)
        rows, columns = config.grid
        self.pos_embed = draw(config.positioned_prefix_tokens + rows * columns)
        if config.has_embed_norm:
            self.norm = LayerNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.config = config

    def __call__(self, x: Array, *, is_training: bool) -> Float[Array, "b n d"]:
        config = self.config
        if x.shape[1:] != config.image_shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"images are {x.dtype} of shape {x.shape}, wanted floats of shape {('b', *config.image_shape)}; "
                "`Preprocess` resizes and crops an image, and `Preprocess.normalise` turns bytes into floats"
            )
        tokens = project_patches(x, jnp.asarray(self.patch.kernel[...]), config.grid)
        tokens = tokens if self.patch.bias is None else tokens + self.patch.bias[...][None, None]
        prefix = [self.cls_token[...]] if config.has_class_token else []
        if config.has_distillation_token:
            prefix.append(self.distillation_token[...])
        positions, free = self.pos_embed[...], []
        if config.has_prefix_positions:
            tokens = prepend(prefix, tokens) + positions
        else:
            tokens, free = tokens + positions, prefix
        if config.num_registers:
            # Behind the tokens that have positions, before the patches.
            first = config.positioned_prefix_tokens
            patches = prepend([self.registers[...]], tokens[:, first:])
            tokens = jnp.concatenate([tokens[:, :first], patches], axis=1)
        tokens = prepend(free, tokens)
        return self.norm(tokens) if config.has_embed_norm else tokens
