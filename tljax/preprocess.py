"""What a model wants done to an image: it belongs to the weights, so it travels with them."""

from dataclasses import asdict, dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, crop and normalise, as the source of the weights does.

    The host resizes and crops to uint8; `normalise` runs inside the compiled step, so a quarter of
    the bytes travel.

    Args:
        size: side of the square that the model sees, in pixels.
        resize: side in pixels that the short side is resized to before a centre crop to `size`; None
            resizes both sides straight to `size`, whatever the aspect ratio.
        interpolation: "bicubic" or "bilinear", Pillow's, which widens its kernel when it shrinks.
        mean, std: per channel, on the scale where white is 1.
    """

    size: int
    resize: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not known; known: {sorted(INTERPOLATIONS)}")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"cannot crop {self.size} pixels from a side of {self.resize}; resize must be >= size")

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """Resize and crop one image on the host."""
        picture = Image.fromarray(image)
        method = INTERPOLATIONS[self.interpolation]
        if self.resize is None:
            return np.asarray(picture.resize((self.size, self.size), method))
        # Multiplied first, then divided and cut to whole pixels, as transformers and torchvision do: a factor rounds.
        width, height = (int(self.resize * side / min(picture.size)) for side in picture.size)
        resized = np.asarray(picture.resize((width, height), method))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]

    def normalise(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Turn bytes into the numbers the model was trained on; traceable."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255.0 - mean[None, None, None]) / std[None, None, None]

    def describe(self) -> dict:
        """Return the fields as plain values, for fingerprints and reports."""
        return asdict(self)
