"""Options of `load`, checked before a file is opened."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from tljax.preprocess import Preprocess
from tljax.weights.source import Source, preprocess_of

DTYPES = ("float32", "bfloat16")


def check_options(
    *,
    dtype: str,
    num_classes: int | None,
    classes: Sequence[str] | None,
    image_size: int | tuple[int, int] | None,
    in_channels: int | None,
    patch_size: int | None,
    head: Mapping[str, Any] | None,
) -> None:
    """Refuse options that no weights could meet; see `load` for what they mean.

    Raises:
        ValueError: one is out of range, or two do not go together.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose 'float32' or 'bfloat16'")
    sides = image_size if isinstance(image_size, tuple | list) else (image_size,)
    if image_size is not None and not (len(sides) in (1, 2) and all(_is_count(side, 1) for side in sides)):
        raise ValueError(
            f"image_size is {image_size!r}, wanted a number of pixels above 0, a pair (height, width) of them, or None "
            "for the source's"
        )
    if num_classes is not None and not _is_count(num_classes, 0):
        raise ValueError(f"num_classes is {num_classes!r}, wanted a number of classes, or None for the source's head")
    for name, value in (("in_channels", in_channels), ("patch_size", patch_size)):
        if value is not None and not _is_count(value, 1):
            raise ValueError(f"{name} is {value!r}, wanted a number above 0, or None for the source's")
    if classes is not None and (num_classes is not None or not classes):
        raise ValueError("give classes=, to keep some of the source's head, or num_classes=, for a new head, not both")
    if head and not num_classes:
        raise ValueError(f"head={dict(head)} says how a new head starts, and there is none: give num_classes=")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def prepared(
    source: Source,
    given: Preprocess | Mapping[str, Any] | None,
    image_size: int | tuple[int, int] | None,
    in_channels: int | None,
) -> Preprocess:
    """Return what is to be done to images, at the size and with the channels that are asked for."""
    return adapted(preprocess_of(source, given), image_size, in_channels)


def adapted(chosen: Preprocess, image_size: int | tuple[int, int] | None, in_channels: int | None) -> Preprocess:
    """Return the same with another size and other channels; None leaves them."""
    if image_size is not None:
        chosen = resized(chosen, image_size)
    if in_channels is not None and in_channels != len(chosen.mean):
        # As timm does: every channel gets the mean over the old ones.
        mean, std = (sum(values) / len(values) for values in (chosen.mean, chosen.std))
        chosen = dataclasses.replace(chosen, mean=(mean,) * in_channels, std=(std,) * in_channels)
    return chosen


def resized(preprocess: Preprocess, size: int | tuple[int, int]) -> Preprocess:
    """Ask for another size, the margin of the crop kept in proportion."""
    old_size, new_size = _pair(preprocess.size), _pair(size)
    ratios = [new / old for new, old in zip(new_size, old_size, strict=True)]
    resize = preprocess.resize
    if isinstance(resize, tuple):
        resize = (round(resize[0] * ratios[0]), round(resize[1] * ratios[1]))
    elif resize is not None:
        resize = round(resize * max(ratios))
    return dataclasses.replace(preprocess, size=size, resize=resize)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
