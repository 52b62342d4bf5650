"""What a model wants done to an image: it belongs to the weights, so it travels with them."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from tljax.paths import did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
CROP_ROUNDINGS = ("down", "even")
CHANNEL_ORDERS = ("rgb", "bgr")
# Fields that were added later: at their defaults they are left out of `describe`, whose hash names stored features.
_LATER = ("crop_rounding", "channel_order")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, crop and normalise, as the source of the weights does.

    The host resizes and crops to uint8; `normalise` runs inside the compiled step, so a quarter of
    the bytes travel.

    Args:
        size: side of the square that the model sees, or (height, width), in pixels.
        resize: pixels that the short side is resized to before a centre crop to `size`; a pair (height, width) that
            the image is resized to whatever its aspect ratio, before that crop; None resizes straight to `size`.
        interpolation: Pillow's of that name, which widens its kernel when it shrinks; one of `INTERPOLATIONS`.
        mean, std: per channel, on the scale where white is 1. One channel means grey images.
        crop_rounding: where an odd margin of the crop goes: "down" halves it downwards, as transformers does,
            "even" to the nearest even number, as torchvision and timm do.
        channel_order: "rgb", or "bgr" (Caffe's weights, and those that Keras took from it); of mean and std too.
    """

    size: int | tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_rounding: str = "down"
    channel_order: str = "rgb"

    def __post_init__(self) -> None:
        choices = {
            "interpolation": INTERPOLATIONS, "crop_rounding": CROP_ROUNDINGS, "channel_order": CHANNEL_ORDERS,
        }  # fmt: skip
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                near = did_you_mean(str(value), known)
                raise ValueError(f"{name} {value!r} is not known{near}; known: {', '.join(known)}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}, wanted one number a channel")
        height, width, _ = self.shape
        if height == width:
            object.__setattr__(self, "size", height)  # one spelling of a square, so that equals are equal
        least = self.resize if isinstance(self.resize, tuple) else (self.resize or max(height, width),) * 2
        if min(height, width) < 1:
            raise ValueError(f"size is {self.size}, wanted pixels above 0")
        if least[0] < height or least[1] < width:
            raise ValueError(f"cannot crop {self.size} pixels from a side of {self.resize}; resize must be >= size")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the model sees."""
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return height, width, len(self.mean)

    def __call__(self, image: UInt8[np.ndarray, "y x channels"]) -> UInt8[np.ndarray, "height width c"]:
        """Resize and crop one image on the host.

        Raises:
            ValueError: the image is not RGB, or the model takes neither RGB nor grey images.
        """
        height, width, channels = self.shape
        if image.shape[2] != 3 or channels not in (1, 3):
            raise ValueError(
                f"the image has {image.shape[2]} channels and the model takes {channels}: RGB images can be prepared "
                "for 3 channels or for 1; prepare others yourself, and give the net floats"
            )
        if self.resize is None and image.shape == self.shape and self.channel_order == "rgb":
            return image  # as Pillow does, which copies it
        picture = Image.fromarray(image)
        method = INTERPOLATIONS[self.interpolation]
        if channels == 1:
            picture = picture.convert("L")
        if self.resize is None:
            pixels = np.asarray(picture.resize((width, height), method))
        else:
            pixels = self._crop(np.asarray(picture.resize(self._resized(picture.size), method)))
        pixels = pixels.reshape(height, width, channels)  # a grey picture has no axis of channels
        return pixels if self.channel_order == "rgb" else np.ascontiguousarray(pixels[:, :, ::-1])

    def _resized(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Return the width and height before the crop."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        # Multiplied first, then divided and cut to whole pixels, as transformers and torchvision do: a factor rounds.
        width, height = (int(self.resize * side / min(sides)) for side in sides)
        return width, height

    def _crop(self, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = self.shape
        margins = (pixels.shape[0] - height, pixels.shape[1] - width)
        top, left = (margin // 2 if self.crop_rounding == "down" else round(margin / 2) for margin in margins)
        return pixels[top : top + height, left : left + width]

    def normalise(self, images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Turn bytes into the numbers the model was trained on; traceable."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255.0 - mean[None, None, None]) / std[None, None, None]

    def describe(self) -> dict:
        """Return the fields as plain values, for fingerprints and reports."""
        defaults = {item.name: item.default for item in dataclasses.fields(self) if item.name in _LATER}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
