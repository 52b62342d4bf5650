"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556), with or without BatchNorm."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tljax.models.kernels import Kernels
from tljax.models.net import HEAD
from tljax.models.noise import Noise, drop_units
from tljax.models.normalisation import BatchNorm
from tljax.models.pooling import max_pool, pool

FC1, FC2 = "fc1", "fc2"


@dataclass(frozen=True, kw_only=True)
class VggConfig:
    """What distinguishes one VGG from another.

    Args:
        convolutions: number of convolutions of each block; a max-pool ends the block.
        widths: channels that each block puts out.
        use_norm: BatchNorm behind each convolution.
        hidden_width: of the two linear layers before the classifier; 0 for none: the head pools the last map.
        pool_grid: rows and columns of the map that the first linear layer reads; maps of other sizes are averaged
            to it.
        is_head_convolutional: the two linear layers slide over a map that is larger than the grid and the head
            averages their outputs, as in timm; else the map is averaged to the grid, as in torchvision. Images that
            the nets were published for give the same either way.
        num_classes: 0 leaves the head without a classifier: it returns what the classifier would read.
        in_channels: of the images.
    """

    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    use_norm: bool = False
    hidden_width: int = 4096
    pool_grid: int = 7
    is_head_convolutional: bool = False
    num_classes: int = 0
    in_channels: int = 3

    def __post_init__(self) -> None:
        if len(self.convolutions) != len(self.widths) or not self.convolutions:
            raise ValueError(f"convolutions {self.convolutions} and widths {self.widths} want one number a block each")
        for numbers in (self.convolutions, (len(self.convolutions),)):
            if not all(1 <= number <= 9 for number in numbers):
                # One digit each, so that sorting stage names is sorting by depth.
                raise ValueError(f"convolutions {self.convolutions} want 1 to 9 blocks of 1 to 9 convolutions")

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        return (*self.convolution_stages, *((FC1, FC2) if self.hidden_width else ()), HEAD)

    @property
    def convolution_stages(self) -> tuple[str, ...]:
        """Stage names of the convolutions."""
        return tuple(
            f"block{block}_conv{convolution + 1}"
            for block, count in enumerate(self.convolutions, 1)
            for convolution in range(count)
        )

    @property
    def prefix_tokens(self) -> int:
        """None: the stages put out feature maps."""
        return 0

    @property
    def branch_stages(self) -> tuple[str, ...]:
        """None: nothing is residual."""
        return ()

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        """Stages that drop units: their own outputs, as published, or what the classifier reads."""
        return (FC1, FC2) if self.hidden_width else (HEAD,)

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        """Stages that choose between ways to compute the same thing: those with BatchNorm."""
        return self.convolution_stages if self.use_norm else ()

    @property
    def head_width(self) -> int:
        """0: there is no attention."""
        return 0

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage."""
        if stage == HEAD:
            return Head(self, rngs)
        if stage == FC1:
            return FirstLinear(self, rngs)
        if stage == FC2:
            return SecondLinear(self, rngs)
        block, convolution = (int(number) for number in stage.removeprefix("block").split("_conv"))
        return Convolution(self, block - 1, convolution - 1, rngs)


class Convolution(nnx.Module):
    """A 3x3 convolution, BatchNorm where the config says so, and ReLU; the last of a block ends with a max-pool."""

    def __init__(self, config: VggConfig, block: int, convolution: int, rngs: nnx.Rngs):
        width = config.widths[block]
        before = config.widths[block - 1] if block else config.in_channels
        self.conv = nnx.Conv(width if convolution else before, width, (3, 3), padding=1, rngs=rngs)
        self.use_norm = config.use_norm
        if self.use_norm:
            self.norm = BatchNorm(width, epsilon=1e-5, rngs=rngs)
        self.has_pool = convolution == config.convolutions[block] - 1

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, kernels: Kernels | None = None
    ) -> Float[Array, "b y x k"]:
        x = self.conv(x)
        x = self.norm(x, not is_training, has_relu=True, kernels=kernels) if self.use_norm else jax.nn.relu(x)
        if not self.has_pool:
            return x
        if min(x.shape[1:3]) < 2:
            raise ValueError(f"a map of {x.shape[1]} x {x.shape[2]} cannot be halved: the images are too small")
        return max_pool(x, 2, 2, 0)


class FirstLinear(nnx.Module):
    """The map, averaged to a grid, through a linear layer and ReLU."""

    def __init__(self, config: VggConfig, rngs: nnx.Rngs):
        grid = config.pool_grid
        self.linear = nnx.Linear(grid * grid * config.widths[-1], config.hidden_width, rngs=rngs)
        self.grid = grid
        self.is_convolutional = config.is_head_convolutional

    def __call__(
        self, x: Float[Array, "b h w c"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b *yx d"]:
        grid = self.grid
        if not self.is_convolutional:
            x = adaptive_average_pool(x, (grid, grid))
            return drop_units(jax.nn.relu(self.linear(x.reshape(x.shape[0], -1))), noise)  # b y x c -> b (y x c)
        x = adaptive_average_pool(x, (max(grid, x.shape[1]), max(grid, x.shape[2])))
        kernel = self.linear.kernel[...].reshape(grid, grid, x.shape[-1], -1)  # (y x c) d -> y x c d
        mapped = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # fmt: skip
        bias = self.linear.bias
        assert bias is not None
        return drop_units(jax.nn.relu(mapped + bias[...][None, None, None]), noise)


class SecondLinear(nnx.Module):
    """A linear layer and ReLU; at each position where the first put out a map."""

    def __init__(self, config: VggConfig, rngs: nnx.Rngs):
        self.linear = nnx.Linear(config.hidden_width, config.hidden_width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b *yx d"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b *yx d"]:
        return drop_units(jax.nn.relu(self.linear(x)), noise)


class Head(nnx.Module):
    """The mean over all positions of a map, and a linear classifier that starts at zero, if there are classes."""

    def __init__(self, config: VggConfig, rngs: nnx.Rngs):
        self.has_classifier = bool(config.num_classes)
        if self.has_classifier:
            zeros = nnx.initializers.zeros
            width = config.hidden_width or config.widths[-1]
            self.linear = nnx.Linear(width, config.num_classes, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b *yx d"], *, is_training: bool, noise: Noise | None = None
    ) -> Float[Array, "b k"]:
        pooled = pool(x, "mean", 0)
        return self.linear(drop_units(pooled, noise)) if self.has_classifier else pooled


def adaptive_average_pool(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b y x c"]:
    """Average a map to a grid of windows that may overlap.

    Source: torch.nn.AdaptiveAvgPool2d, whose window i of n over a side of s covers floor(i s / n) up to
    ceil((i + 1) s / n).
    """
    for axis, count in enumerate(grid, 1):
        if x.shape[axis] != count:
            windows = jnp.asarray(_windows(x.shape[axis], count), x.dtype)
            averaged = jnp.tensordot(windows, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(averaged, 0, axis)  # the windows take the place of the axis they average
    return x


def _windows(side: int, count: int) -> Float[np.ndarray, "count side"]:
    """Return the matrix that averages `side` points to `count` windows."""
    starts = np.arange(count) * side // count
    stops = -(-(np.arange(count) + 1) * side // count)  # rounded up
    points = np.arange(side)
    is_inside = (points >= starts[:, None]) & (points < stops[:, None])
    return is_inside / is_inside.sum(axis=1, keepdims=True)


_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

ARCHITECTURES = {
    f"vgg{depth}{'_bn' * use_norm}": VggConfig(convolutions=convolutions, use_norm=use_norm)
    for depth, convolutions in _CONVOLUTIONS.items()
    for use_norm in (False, True)
}
