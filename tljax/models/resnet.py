"""ResNet v1.5 (He et al. 2016, arXiv:1512.03385), wide ResNet (arXiv:1605.07146) and ResNeXt (arXiv:1611.05431).

Version 1.5 halves the map in the 3x3 convolution of a bottleneck, where the paper's version 1 does in the first 1x1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.folded import halve
from tljax.models.kernels import FOLDED, Kernels, stem_way
from tljax.models.net import HEAD
from tljax.models.noise import Noise, drop_branch, drop_units
from tljax.models.normalisation import BatchNorm
from tljax.models.pooling import max_pool, pool

STEM = "stem"
# A bottleneck's output is this many times as wide as its 3x3 convolution before groups and widening.
EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """What distinguishes one ResNet from another.

    Args:
        depths: number of blocks of each layer.
        widths: channels that the blocks of each layer put out.
        stem_width: channels that the stem puts out.
        is_bottleneck: three convolutions a block (1x1, 3x3, 1x1), else two (3x3, 3x3).
        groups: of the 3x3 convolution of a bottleneck (ResNeXt).
        width_per_group: channels of a group in the first layer, over `widths[0] / (4 * 64)`: 64 in ResNet, 128 in
            wide ResNet, 4 or 8 in ResNeXt.
        is_first_halved: the first layer halves the map, as the others do.
        is_halved_early: a bottleneck halves the map in its first convolution (version 1).
        norm_epsilon: of each BatchNorm.
        num_classes: 0 leaves the head without a classifier: it returns the pooled features.
        in_channels: of the images.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int = 64
    is_bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    is_first_halved: bool = False
    is_halved_early: bool = False
    norm_epsilon: float = 1e-5
    num_classes: int = 0
    in_channels: int = 3

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths) or not self.depths or min(self.depths) < 1 or len(self.depths) > 9:
            raise ValueError(f"depths {self.depths} and widths {self.widths} want one positive number a layer each")
        if self.is_bottleneck and any(width % EXPANSION for width in self.widths):
            raise ValueError(f"widths {self.widths} of bottlenecks are no multiples of {EXPANSION}")
        if not self.is_bottleneck and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError("groups and width_per_group are those of bottlenecks")

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        blocks = (f"layer{layer}_{block:02d}" for layer, depth in enumerate(self.depths, 1) for block in range(depth))
        return (STEM, *blocks, HEAD)

    @property
    def prefix_tokens(self) -> int:
        """None: the stages put out feature maps."""
        return 0

    @property
    def branch_stages(self) -> tuple[str, ...]:
        """Stages with residual branches, in order of depth."""
        return self.stages[1:-1]

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        """Stages that drop units."""
        return (HEAD,)

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        """Stages that choose between ways to compute the same thing: those with BatchNorm."""
        return self.stages[:-1]

    @property
    def head_width(self) -> int:
        """0: there is no attention."""
        return 0

    def hidden_width(self, layer: int) -> int:
        """Channels of the 3x3 convolution of a bottleneck; `layer` counts from 0."""
        return self.widths[layer] // EXPANSION * self.width_per_group // 64 * self.groups

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage."""
        if stage == STEM:
            return Stem(self, rngs)
        if stage == HEAD:
            return Head(self, rngs)
        layer, block = (int(number) for number in stage.removeprefix("layer").split("_"))
        return Block(self, layer - 1, block, rngs)


class Stem(nnx.Module):
    """A 7x7 convolution, BatchNorm, ReLU and a max-pool; convolution and pool have stride 2."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        self.conv = _conv(config.in_channels, config.stem_width, 7, 2, 1, rngs)
        self.norm = _norm(config, config.stem_width, rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, is_training: bool, kernels: Kernels) -> Float[Array, "b y x k"]:
        x = halve(x, jnp.asarray(self.conv.kernel[...])) if stem_way(kernels) == FOLDED else self.conv(x)
        return max_pool(self.norm(x, not is_training, has_relu=True, kernels=kernels), 3, 2, 1)


class Block(nnx.Module):
    """Convolutions with BatchNorm on a branch, and a shortcut, which is projected where the shape changes."""

    def __init__(self, config: ResNetConfig, layer: int, block: int, rngs: nnx.Rngs):
        out_width = config.widths[layer]
        before = config.widths[layer - 1] if layer else config.stem_width
        in_width = out_width if block else before
        stride = 2 if not block and (layer or config.is_first_halved) else 1
        self.is_bottleneck = config.is_bottleneck
        if config.is_bottleneck:
            width = config.hidden_width(layer)
            first, second = (stride, 1) if config.is_halved_early else (1, stride)
            self.conv1 = _conv(in_width, width, 1, first, 1, rngs)
            self.conv2 = _conv(width, width, 3, second, config.groups, rngs)
            self.conv3 = _conv(width, out_width, 1, 1, 1, rngs)
            self.norm3 = _norm(config, out_width, rngs)
        else:
            width = out_width
            self.conv1 = _conv(in_width, width, 3, stride, 1, rngs)
            self.conv2 = _conv(width, width, 3, 1, 1, rngs)
        self.norm1 = _norm(config, width, rngs)
        self.norm2 = _norm(config, width, rngs)
        self.has_projection = stride != 1 or in_width != out_width
        if self.has_projection:
            self.shortcut = _conv(in_width, out_width, 1, stride, 1, rngs)
            self.shortcut_norm = _norm(config, out_width, rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, noise: Noise | None = None, kernels: Kernels
    ) -> Float[Array, "b y x k"]:
        running = not is_training
        y = self.norm1(self.conv1(x), running, has_relu=True, kernels=kernels)
        y = self.norm2(self.conv2(y), running, has_relu=self.is_bottleneck, kernels=kernels)
        if self.is_bottleneck:
            y = self.norm3(self.conv3(y), running, kernels=kernels)
        if self.has_projection:
            x = self.shortcut_norm(self.shortcut(x), running, kernels=kernels)
        return jax.nn.relu(x + drop_branch(y, noise, branch=0))


class Head(nnx.Module):
    """The mean over all positions, and a linear classifier that starts at zero, if there are classes."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        self.has_classifier = bool(config.num_classes)
        if self.has_classifier:
            zeros = nnx.initializers.zeros
            width = config.widths[-1]
            self.linear = nnx.Linear(width, config.num_classes, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b k"]:
        pooled = pool(x, "mean", 0)
        return self.linear(drop_units(pooled, noise)) if self.has_classifier else pooled


def _conv(in_width: int, width: int, size: int, stride: int, groups: int, rngs: nnx.Rngs) -> nnx.Conv:
    # The same on both sides, whatever the stride, as torch pads; "SAME" pads less on the left where the stride is 2.
    margin = (size // 2, size // 2)
    return nnx.Conv(
        in_width,
        width,
        (size, size),
        strides=(stride, stride),
        padding=(margin, margin),
        feature_group_count=groups,
        use_bias=False,
        # torchvision/models/resnet.py: kaiming_normal_ with mode "fan_out".
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def _norm(config: ResNetConfig, width: int, rngs: nnx.Rngs) -> BatchNorm:
    return BatchNorm(width, epsilon=config.norm_epsilon, rngs=rngs)


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _bottleneck(depth: int, groups: int = 1, width_per_group: int = 64) -> ResNetConfig:
    return ResNetConfig(depths=_DEPTHS[depth], widths=_BOTTLENECK, groups=groups, width_per_group=width_per_group)


ARCHITECTURES = {
    "resnet18": ResNetConfig(depths=(2, 2, 2, 2), widths=_BASIC, is_bottleneck=False),
    "resnet34": ResNetConfig(depths=(3, 4, 6, 3), widths=_BASIC, is_bottleneck=False),
    **{f"resnet{depth}": _bottleneck(depth) for depth in _DEPTHS},
    **{f"wide_resnet{depth}_2": _bottleneck(depth, width_per_group=128) for depth in (50, 101)},
    "resnext50_32x4d": _bottleneck(50, groups=32, width_per_group=4),
    "resnext101_32x8d": _bottleneck(101, groups=32, width_per_group=8),
    "resnext101_64x4d": _bottleneck(101, groups=64, width_per_group=4),
}
