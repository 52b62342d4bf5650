"""TrivialAugment: one random operation on colours or positions, at a random strength."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from tljax.paths import did_you_mean

# torchvision's TrivialAugmentWide: the operations in its order, and the change at full strength of those that have a
# sign. Translations are in pixels, rotations in degrees.
STRENGTHS = 31
SIGNED = {
    "shear_x": 0.99,
    "shear_y": 0.99,
    "translate_x": 32.0,
    "translate_y": 32.0,
    "rotate": 135.0,
    "brightness": 0.99,
    "color": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
}
OPERATIONS = ("identity", *SIGNED, "posterize", "solarize", "auto_contrast", "equalize")


def draw_operation(generator: np.random.Generator) -> tuple[str, int, int]:
    """Draw what TrivialAugment does to an image: the operation, its strength in 0..30, and its sign."""
    operation, strength, sign = generator.integers((len(OPERATIONS), STRENGTHS, 2)).tolist()
    return OPERATIONS[operation], strength, 2 * sign - 1


def change_trivially(
    image: UInt8[np.ndarray, "h w 3"], operation: str, strength: int, sign: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Apply one of `OPERATIONS` to an RGB image; what moves in from outside is black.

    Args:
        image: the image.
        operation: its name.
        strength: 0 (least) to 30.
        sign: 1 or -1, of the operations in `SIGNED`.
    """
    picture, most = Image.fromarray(image), STRENGTHS - 1
    change = sign * SIGNED[operation] * strength / most if operation in SIGNED else 0.0
    match operation:
        case "identity":
            return image
        case "shear_x":
            changed = _map_affinely(picture, (1.0, change, 0.0, 0.0, 1.0, 0.0))
        case "shear_y":
            changed = _map_affinely(picture, (1.0, 0.0, 0.0, change, 1.0, 0.0))
        case "translate_x":
            changed = _map_affinely(picture, (1.0, 0.0, float(-int(change)), 0.0, 1.0, 0.0))
        case "translate_y":
            changed = _map_affinely(picture, (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(change))))
        case "rotate":
            changed = picture.rotate(change)
        case "posterize":
            changed = ImageOps.posterize(picture, 8 - round(6 * strength / most))
        case "solarize":
            changed = ImageOps.solarize(picture, math.ceil(255 * (most - strength) / most))
        case "auto_contrast":
            changed = ImageOps.autocontrast(picture)
        case "equalize":
            changed = ImageOps.equalize(picture)
        case "brightness" | "color" | "contrast" | "sharpness":
            changed = getattr(ImageEnhance, operation.capitalize())(picture).enhance(1.0 + change)
        case _:
            raise ValueError(f"no operation {operation!r}{did_you_mean(operation, OPERATIONS)}")
    return np.asarray(changed)


def _map_affinely(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Take pixel (x, y) of the result from (ax + by + c, dx + ey + f)."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)
