"""ResNet v2 of Big Transfer (BiT; Kolesnikov et al. 2020, arXiv:1912.11370).

Norm and activation stand before each convolution (He et al. 2016, arXiv:1603.05027), GroupNorm (Wu and He 2018,
arXiv:1803.08494) takes the place of BatchNorm, and the weights of each convolution are standardised (Qiao et al. 2019,
arXiv:1903.10520).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.net import HEAD, NORM
from tljax.models.noise import Noise, drop_branch, drop_units
from tljax.models.pooling import max_pool, pool

STEM = "stem"
# A block's output is this many times as wide as its 3x3 convolution.
BOTTLENECK = 4


@dataclass(frozen=True, kw_only=True)
class ResNetV2Config:
    """What distinguishes one BiT from another.

    Args:
        depths: number of blocks of each layer; from the second layer on the first block halves the map.
        widths: channels that the blocks of each layer put out, before `width_factor`.
        stem_width: channels that the stem puts out, before `width_factor`.
        width_factor: multiplies all widths.
        num_groups: of each GroupNorm.
        norm_epsilon: of each GroupNorm.
        weight_epsilon: added to the variance of a kernel: 1e-8 in timm and Hugging Face, 1e-10 in BiT's own code.
        num_classes: 0 leaves the head without a classifier: it returns the pooled features.
        in_channels: of the images.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    width_factor: int = 1
    num_groups: int = 32
    norm_epsilon: float = 1e-5
    weight_epsilon: float = 1e-8
    num_classes: int = 0
    in_channels: int = 3

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths) or not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths {self.depths} and widths {self.widths} want one positive number a layer each")
        problems = []
        if self.scaled_stem_width % self.num_groups:
            problems.append(f"stem_width {self.stem_width} x width_factor is no multiple of {self.num_groups}")
        multiple = BOTTLENECK * self.num_groups
        for width, scaled in zip(self.widths, self.scaled_widths, strict=True):
            if scaled % multiple:
                problems.append(f"width {width} x width_factor is no multiple of {multiple}, {BOTTLENECK} x num_groups")
        if problems:
            raise ValueError(f"num_groups {self.num_groups} divides not every norm: " + "; ".join(problems))

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        blocks = (
            f"layer{layer}_{block:02d}" for layer, depth in enumerate(self.depths, 1) for block in range(depth)
        )  # fmt: skip
        return (STEM, *blocks, NORM, HEAD)

    @property
    def prefix_tokens(self) -> int:
        """None: the stages put out feature maps."""
        return 0

    @property
    def branch_stages(self) -> tuple[str, ...]:
        """Stages with residual branches, in order of depth."""
        return self.stages[1:-2]

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        """Stages that drop units."""
        return (HEAD,)

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        """None: XLA computes all stages."""
        return ()

    @property
    def head_width(self) -> int:
        """0: there is no attention."""
        return 0

    @property
    def scaled_stem_width(self) -> int:
        """Channels that the stem puts out."""
        return self.stem_width * self.width_factor

    @property
    def scaled_widths(self) -> tuple[int, ...]:
        """Channels that each layer puts out."""
        return tuple(width * self.width_factor for width in self.widths)

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage."""
        if stage == STEM:
            return Stem(self, rngs)
        if stage == NORM:
            return GroupNormRelu(self, self.scaled_widths[-1])
        if stage == HEAD:
            return Head(self, rngs)
        layer, block = (int(number) for number in stage.removeprefix("layer").split("_"))
        return Block(self, layer - 1, block, rngs)


class StandardizedConv(nnx.Module):
    """A convolution whose kernel has mean 0 and variance 1 over each output channel's inputs."""

    def __init__(self, config: ResNetV2Config, shape: tuple[int, int, int], stride: int, rngs: nnx.Rngs):
        size, in_width, out_width = shape
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (size, size, in_width, out_width)))
        self.stride = stride
        # The same on both sides, whatever the stride; "SAME" pads less on the left where the stride is 2.
        self.padding = ((size - 1) // 2, (size - 1) // 2)
        self.epsilon = config.weight_epsilon

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x k"]:
        kernel = standardize(self.kernel[...], (0, 1, 2), self.epsilon)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            (self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class GroupNormRelu(nnx.Module):
    """GroupNorm and ReLU."""

    def __init__(self, config: ResNetV2Config, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.num_groups = config.num_groups
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "b h w c"], *, is_training: bool = False) -> Float[Array, "b h w c"]:
        groups = x.reshape(*x.shape[:3], self.num_groups, -1)  # b h w (groups e) -> b h w groups e
        normalised = standardize(groups, (1, 2, 4), self.epsilon).reshape(x.shape)  # back to b h w c
        return jax.nn.relu(normalised * self.scale[...][None, None, None] + self.bias[...][None, None, None])


class Stem(nnx.Module):
    """A 7x7 convolution and a max-pool, each of stride 2."""

    def __init__(self, config: ResNetV2Config, rngs: nnx.Rngs):
        self.conv = StandardizedConv(config, (7, config.in_channels, config.scaled_stem_width), 2, rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, is_training: bool) -> Float[Array, "b y x k"]:
        # Zeros, not minus infinity: nothing has cut off the negative values, and at the border zero wins over them.
        padded = jnp.pad(self.conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return max_pool(padded, 3, 2, 0)


class Block(nnx.Module):
    """Pre-activation bottleneck; the first of a layer projects its shortcut, which starts behind the first norm."""

    def __init__(self, config: ResNetV2Config, layer: int, block: int, rngs: nnx.Rngs):
        out_width = config.scaled_widths[layer]
        before = config.scaled_widths[layer - 1] if layer else config.scaled_stem_width
        in_width = out_width if block else before
        width = out_width // BOTTLENECK
        stride = 2 if layer and not block else 1
        self.norm1 = GroupNormRelu(config, in_width)
        self.conv1 = StandardizedConv(config, (1, in_width, width), 1, rngs)
        self.norm2 = GroupNormRelu(config, width)
        self.conv2 = StandardizedConv(config, (3, width, width), stride, rngs)
        self.norm3 = GroupNormRelu(config, width)
        self.conv3 = StandardizedConv(config, (1, width, out_width), 1, rngs)
        self.has_projection = not block
        if self.has_projection:
            self.shortcut = StandardizedConv(config, (1, in_width, out_width), stride, rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b y x k"]:
        active = self.norm1(x)
        shortcut = self.shortcut(active) if self.has_projection else x
        hidden = self.conv2(self.norm2(self.conv1(active)))
        return drop_branch(self.conv3(self.norm3(hidden)), noise, branch=0) + shortcut


class Head(nnx.Module):
    """The mean over all positions, and a linear classifier that starts at zero, if there are classes."""

    def __init__(self, config: ResNetV2Config, rngs: nnx.Rngs):
        self.has_classifier = bool(config.num_classes)
        if self.has_classifier:
            zeros = nnx.initializers.zeros
            self.linear = nnx.Linear(
                config.scaled_widths[-1], config.num_classes, kernel_init=zeros, bias_init=zeros, rngs=rngs
            )  # fmt: skip

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b k"]:
        pooled = pool(x, "mean", 0)
        return self.linear(drop_units(pooled, noise)) if self.has_classifier else pooled


def standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Shift and scale to mean 0 and (population) variance 1 over these axes.

    Computed in float32: half precision loses digits in a mean over many values.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


_DEPTHS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "r152": (3, 8, 36, 3)}

ARCHITECTURES = {
    f"bit_{name}x{factor}": ResNetV2Config(depths=_DEPTHS[name], width_factor=factor)
    for name, factor in (("r50", 1), ("r50", 3), ("r101", 1), ("r101", 3), ("r152", 2), ("r152", 4))
}
