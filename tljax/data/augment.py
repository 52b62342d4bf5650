"""Random changes of training images: the eight views under flips and quarter turns, crops, colours, erased boxes."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from tljax.data.trivial_augment import change_trivially, draw_operation
from tljax.preprocess import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocess

VIEWS = 8

Preparation = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "height width c"]]

# torchvision's RandomResizedCrop: aspect ratios, and attempts before it takes the middle.
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# torchvision's RandomErasing; Zhong et al. erase up to 0.4 of the area.
ERASED_SHARE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are changed at random, in this order: crop, view, TrivialAugment, erasing.

    Args:
        views: how many of the views of `dihedral` to draw from: 1 for none but the image itself, 2 for mirror images,
            4 for half turns as well, 8 for all.
        crop_scale: least and greatest share of the image's area in a random crop of aspect ratio 3/4 to 4/3, resized
            to what the model sees (Szegedy et al. 2015, arXiv:1409.4842, as torchvision's RandomResizedCrop); None for
            the crop of the model's preprocessing.
        trivial_augment: one operation of 14, at one of 31 strengths (Mueller and Hutter 2021, arXiv:2103.10158, with
            the ranges of torchvision's TrivialAugmentWide).
        erasing_probability: of filling a box with random bytes (Zhong et al. 2017, arXiv:1708.04896).
        short_side: of larger images, in pixels, which are first resized to it: random crops are then cheaper, and so
            is an image cache, which keeps them so. Needs `crop_scale`; None crops from images as they are.

    Raises:
        ValueError: a number is out of range.
    """

    views: int = 1
    crop_scale: tuple[float, float] | None = None
    trivial_augment: bool = False
    erasing_probability: float = 0.0
    short_side: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.views <= VIEWS:
            problems.append(f"views is {self.views}, wanted 1 to {VIEWS}")
        if self.crop_scale is not None and not 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0:
            problems.append(f"crop_scale is {self.crop_scale}, wanted 0 < least <= greatest <= 1")
        if not 0.0 <= self.erasing_probability <= 1.0:
            problems.append(f"erasing_probability is {self.erasing_probability}, wanted 0 to 1")
        if self.short_side is not None and (self.short_side < 1 or self.crop_scale is None):
            problems.append(f"short_side is {self.short_side}, wanted pixels above 0, and a crop_scale")
        if problems:
            raise ValueError("; ".join(problems))

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values, for the names of what is stored."""
        values = dataclasses.asdict(self)
        # It came later, and changes nothing where it is not set.
        return {name: value for name, value in values.items() if name != "short_side" or value is not None}

    @property
    def needs_decoded(self) -> bool:
        """Whether the model's preprocessing comes after random changes, which it would otherwise come before."""
        return self.crop_scale is not None or self.trivial_augment


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Resize images whose short side is longer than `short_side` to that; `interpolation` is one of Pillow's."""

    short_side: int
    interpolation: str

    def __call__(self, image: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image, or a smaller one; doing it twice is doing it once."""
        height, width = image.shape[:2]
        least = min(height, width)
        if least <= self.short_side:
            return image
        wide, high = (max(self.short_side, round(side * self.short_side / least)) for side in (width, height))
        return np.asarray(Image.fromarray(image).resize((wide, high), INTERPOLATIONS[self.interpolation]))

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


def augment_image(
    image: UInt8[np.ndarray, "h w 3"],
    generator: np.random.Generator,
    augment: Augment,
    preprocess: Preparation,
    *,
    view: int | np.integer,
) -> UInt8[np.ndarray, "height width c"]:
    """Prepare one image for the model, changed at random: a pure function of its arguments.

    Args:
        image: decoded.
        generator: all randomness but the view.
        augment: how.
        preprocess: of the model; crops and TrivialAugment need a `Preprocess`, for its size and interpolation.
        view: for `dihedral`, drawn from the first `augment.views` by the caller, who reports it.

    Raises:
        ValueError: crops or TrivialAugment are wanted and `preprocess` is another function; or as `dihedral`.
    """
    if not augment.needs_decoded:
        return augment_prepared(preprocess(image), generator, augment, view=view)
    if not isinstance(preprocess, Preprocess):
        raise ValueError(f"crop_scale and trivial_augment need a Preprocess, got {type(preprocess).__name__}")
    pixels = _change_in_rgb(image, generator, augment, preprocess, view)
    return _erase(pixels, generator, augment)


def augment_prepared(
    pixels: UInt8[np.ndarray, "height width c"],
    generator: np.random.Generator,
    augment: Augment,
    *,
    view: int | np.integer,
) -> UInt8[np.ndarray, "height width c"]:
    """Change one image that is prepared for the model, where the changes do not need it as it was decoded.

    The arguments are those of `augment_image`, and so is what it returns.
    """
    assert not augment.needs_decoded
    return _erase(dihedral(pixels, view), generator, augment)


def _erase(pixels: np.ndarray, generator: np.random.Generator, augment: Augment) -> np.ndarray:
    return erase_box(pixels, generator) if generator.random() < augment.erasing_probability else pixels


def _change_in_rgb(
    image: np.ndarray, generator: np.random.Generator, augment: Augment, preprocess: Preprocess, view: int | np.integer
) -> np.ndarray:
    """Crop, turn and recolour; colours mean nothing once the preprocessing has made them grey or swapped them."""
    in_rgb = dataclasses.replace(preprocess, mean=IMAGENET_MEAN, std=IMAGENET_STD, channel_order="rgb")
    if augment.crop_scale is None:
        pixels = in_rgb(image)
    else:
        if augment.short_side is not None:
            image = Shrink(short_side=augment.short_side, interpolation=preprocess.interpolation)(image)
        top, left, height, width = draw_crop(image.shape[0], image.shape[1], generator, augment.crop_scale)
        sides, method = (in_rgb.shape[1], in_rgb.shape[0]), INTERPOLATIONS[in_rgb.interpolation]
        # Pillow's filter looks over the edges of the box, which a crop before the resize would not.
        box = (left, top, left + width, top + height)
        pixels = np.asarray(Image.fromarray(image).resize(sides, method, box=box))
    pixels = dihedral(pixels, view)
    if augment.trivial_augment:
        pixels = change_trivially(pixels, *draw_operation(generator))
    # Nothing is left to resize.
    return dataclasses.replace(preprocess, resize=None)(pixels)


def draw_crop(
    height: int, width: int, generator: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw the top, left, height and width of a crop as torchvision's RandomResizedCrop does.

    The middle of the image is taken where no attempt fits, at the nearest aspect ratio in range.
    """
    for _ in range(CROP_ATTEMPTS):
        rows, columns = _draw_sides(height * width, generator, scale, CROP_RATIO)
        if 0 < rows <= height and 0 < columns <= width:
            top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
            return int(top), int(left), rows, columns
    least, greatest = CROP_RATIO
    rows, columns = min(height, round(width / least)), min(width, round(height * greatest))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def erase_box(image: UInt8[np.ndarray, "h w c"], generator: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
    """Fill a random box with random bytes; where it sticks out of the image it is cut, the paper draws again."""
    height, width, channels = image.shape
    sides = _draw_sides(height * width, generator, ERASED_SHARE, ERASED_RATIO)
    rows, columns = (int(np.clip(side, 1, most)) for side, most in zip(sides, (height, width), strict=True))
    top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
    erased = image.copy()
    erased[top : top + rows, left : left + columns] = generator.integers(
        256, size=(rows, columns, channels), dtype=np.uint8
    )
    return erased


def _draw_sides(
    area: int, generator: np.random.Generator, share: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int]:
    """Draw the rows and columns of a box: its share of the area evenly, its aspect ratio evenly in the logarithm."""
    box_area = area * generator.uniform(*share)
    box_ratio = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(box_area / box_ratio)), round(math.sqrt(box_area * box_ratio))


def dihedral(image: Shaped[np.ndarray, "h w c"], view: int | np.integer) -> Shaped[np.ndarray, "y x c"]:
    """Return one of the eight symmetric views of an image.

    The bits of `view` are independent: 1 flips left and right, 2 flips top and bottom, 4 swaps rows and
    columns (last, so that the first 1, 2, 4 and 8 views are groups, each for more symmetric data):
    0 as it is, 1 mirrored, 2 upside down, 3 half turn, 4 to 7 the same with rows and columns swapped,
    of which 5 and 6 are the quarter turns.

    Raises:
        ValueError: the view is not in 0..7, or would give an image that is not square another shape.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view is {view}, wanted 0 to {VIEWS - 1}")
    if view & 4 and image.shape[0] != image.shape[1]:
        raise ValueError(
            f"view {view} swaps rows and columns, which an image of {image.shape[0]} x {image.shape[1]} cannot take: "
            "use at most 4 views"
        )
    if view & 1:
        image = image[:, ::-1]
    if view & 2:
        image = image[::-1]
    if view & 4:
        image = image.swapaxes(0, 1)
    if not view & 5:
        return np.ascontiguousarray(image)
    # One channel after the other, four times as fast: numpy copies rows of three bytes badly.
    turned = np.empty(image.shape, image.dtype)
    for channel in range(image.shape[2]):
        turned[:, :, channel] = image[:, :, channel]
    return turned
