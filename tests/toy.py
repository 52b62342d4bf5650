"""Small nets for tests: a ViT, and a convolutional net with running statistics."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models import Net, VitConfig

TINY_VIT = VitConfig(
    depth=4, width=16, num_heads=2, patch_size=4, image_size=16, num_classes=2, use_layer_scale=True, pooling="cls_mean"
)


@dataclass(frozen=True, kw_only=True)
class ToyConvConfig:
    """Two stages of convolution, BatchNorm and ReLU, and a linear head."""

    num_classes: int = 2
    width: int = 4

    @property
    def stages(self) -> tuple[str, ...]:
        return ("layer_0", "layer_1", "head")

    @property
    def prefix_tokens(self) -> int:
        return 0

    @property
    def branch_stages(self) -> tuple[str, ...]:
        return ()

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        return ()

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        return ()

    @property
    def head_width(self) -> int:
        return 0

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        if stage == "head":
            return ToyHead(self, rngs)
        return ToyConv(3 if stage == "layer_0" else self.width, self.width, rngs)


class ToyConv(nnx.Module):
    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), use_running_average=not is_training))


class ToyHead(nnx.Module):
    def __init__(self, config: ToyConvConfig, rngs: nnx.Rngs):
        self.linear = nnx.Linear(config.width, config.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        return self.linear(jnp.mean(x, axis=(1, 2)))


def tiny_vit() -> Net:
    return Net(TINY_VIT)


def toy_conv() -> Net:
    return Net(ToyConvConfig())
