"""Mixup and CutMix: every image of a batch is mixed with a partner, and its targets likewise."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How the images of a batch are mixed.

    Args:
        mixup_alpha: of the Beta(alpha, alpha) that lambda, the share of the image itself, is drawn from in mixup;
            0 for no mixup.
        cutmix_alpha: the same for CutMix.
        probability: that a batch is mixed at all.
        switch_probability: that a mixed batch takes CutMix, where both alphas are above 0.

    Raises:
        ValueError: an alpha is negative or not finite, or a probability outside [0, 1].

    Source:
        Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899; the draws and their names as in timm.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, wanted a finite number >= 0"
            for name in ("mixup_alpha", "cutmix_alpha")
            if not 0.0 <= getattr(self, name) < math.inf
        ]
        problems += [
            f"{name} is {getattr(self, name)}, wanted 0 to 1"
            for name in ("probability", "switch_probability")
            if not 0.0 <= getattr(self, name) <= 1.0
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_on(self) -> bool:
        """Whether any batch is mixed."""
        return max(self.mixup_alpha, self.cutmix_alpha) > 0.0 and self.probability > 0.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is drawn for one batch.

    Args:
        use_cutmix: bool; False is mixup.
        share: lambda, float32, the share of the image itself; 1 leaves the batch as it is.
        centre: int32 (row, column) of the middle of CutMix's box.
    """

    use_cutmix: Any
    share: Any
    centre: Any


def mix_batch(
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    key: Array,
    mix: Mix,
    *,
    axis_name: str | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mix each example with its partner: example i of the whole batch with example b - 1 - i.

    Args:
        images: normalised.
        targets: see `losses.one_hot_targets`.
        key: one for the batch, the same on every device.
        mix: how.
        axis_name: of the mapped axis that the batch is spread over, under `jax.pmap`; partners are those of the whole
            batch there too, so that both give the same numbers, up to rounding.

    Returns:
        Images and targets; those passed in where `mix` is off.
    """
    if not mix.is_on:
        return images, targets
    height, width = images.shape[1:3]
    return apply_draw(images, targets, draw(key, mix, height, width), axis_name=axis_name)


def draw(key: Array, mix: Mix, height: int, width: int) -> Draw:
    """Draw the mixing of one batch of images of height x width pixels; for a `mix` that is on."""
    keys = jax.random.split(key, 5)
    if mix.mixup_alpha > 0.0 and mix.cutmix_alpha > 0.0:
        use_cutmix = jax.random.uniform(keys[0], (), jnp.float32) < mix.switch_probability
    else:
        use_cutmix = jnp.asarray(mix.cutmix_alpha > 0.0)
    alpha = jnp.where(use_cutmix, mix.cutmix_alpha, mix.mixup_alpha)
    share = jax.random.beta(keys[1], alpha, alpha, (), jnp.float32)
    is_mixed = jax.random.uniform(keys[2], (), jnp.float32) < mix.probability
    row, column = jax.random.randint(keys[3], (), 0, height), jax.random.randint(keys[4], (), 0, width)
    return Draw(use_cutmix=use_cutmix, share=jnp.where(is_mixed, share, 1.0), centre=jnp.stack([row, column]))


def apply_draw(
    images: Float[Array, "b h w c"], targets: Float[Array, "b k"], drawn: Draw, *, axis_name: str | None = None
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mix a batch as drawn; see `mix_batch`.

    Mixup is `lambda x_i + (1 - lambda) x_j` of images and of targets. CutMix takes the box from the partner, and
    mixes the targets by the area that the box has once it is clipped to the image.
    """
    box = _box(drawn, *images.shape[1:3])
    # The share of the image itself that is left outside the box.
    outside = 1.0 - jnp.mean(box.astype(jnp.float32))
    share = jnp.where(drawn.use_cutmix, outside, drawn.share)
    partners = _partners(images, axis_name)
    cut = jnp.where(box[None, :, :, None], partners, images)
    mixed = jnp.where(drawn.use_cutmix, cut, _blend(images, partners, drawn.share))
    return mixed, _blend(targets, _partners(targets, axis_name), share)


def _blend(own: Array, others: Array, share: Array) -> Array:
    return share.astype(own.dtype) * own + (1.0 - share).astype(own.dtype) * others


def _box(drawn: Draw, height: int, width: int) -> Bool[Array, "h w"]:
    """Mark the pixels of CutMix's box, of the share 1 - lambda of each side's square; Yun et al., eq. 2.

    As timm rounds: sides are cut to whole pixels, and halves too, so a box of odd side is a pixel smaller.
    """
    side_share = jnp.sqrt(1.0 - drawn.share)

    def inside(axis: int, length: int) -> Bool[Array, " length"]:
        half = (side_share * length).astype(jnp.int32) // 2
        pixel = jax.lax.iota(jnp.int32, length)
        return (pixel >= drawn.centre[axis] - half) & (pixel < drawn.centre[axis] + half)

    return inside(0, height)[:, None] & inside(1, width)[None, :]


def _partners(values: Array, axis_name: str | None) -> Array:
    """Reverse the order of the whole batch: that of the devices, and of the examples on each."""
    if axis_name is not None:
        last = jax.lax.axis_size(axis_name) - 1
        values = jax.lax.ppermute(values, axis_name, [(device, last - device) for device in range(last + 1)])
    return values[::-1]
