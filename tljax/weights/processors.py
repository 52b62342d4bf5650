"""Preprocessing as transformers and timm write it down, and back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.preprocess import INTERPOLATIONS, Preprocess

_CODES = {int(code): name for name, code in INTERPOLATIONS.items()}

# timm/data/config.py: what a pretrained_cfg means that leaves them out.
_TIMM_DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def read_preprocessor(folder: Path) -> Preprocess:
    """Read preprocessor_config.json as transformers does, defaults of its class included.

    Raises:
        ValueError: it asks for what cannot be done here; the message names it.
    """
    from transformers import AutoImageProcessor

    path = folder / "preprocessor_config.json"
    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not getattr(processor, name, True)]
    if off:
        raise ValueError(f"{path}: {' and '.join(off)} = false is not supported; such images are prepared elsewhere")
    on = [name for name in ("do_pad", "do_flip_channel_order", "do_thumbnail") if getattr(processor, name, False)]
    if on:
        raise ValueError(f"{path}: {' and '.join(on)} = true is not supported")
    if processor.resample not in _CODES:
        raise ValueError(f"{path}: resample {processor.resample!r} is not supported; wanted one of {_CODES}")
    if abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(f"{path}: rescale_factor {processor.rescale_factor!r} is not supported; wanted 1/255")
    size, resize = _sizes(path, processor)
    return Preprocess(
        size=size,
        resize=resize,
        interpolation=_CODES[int(processor.resample)],
        mean=_per_channel(path, processor.image_mean),
        std=_per_channel(path, processor.image_std),
    )


def _sizes(path: Path, processor: Any) -> tuple[int | tuple[int, int], int | tuple[int, int] | None]:
    """Return what is cropped, and what the image is resized to before."""
    size = dict(processor.size)
    crop = dict(getattr(processor, "crop_size", None) or {})
    crop_pct = getattr(processor, "crop_pct", None)
    if crop_pct is not None and set(size) == {"shortest_edge"}:
        # ConvNextImageProcessor, which ResNets have: large images are squashed, small ones cropped.
        edge = size["shortest_edge"]
        return (edge, None) if edge >= 384 else (edge, int(edge / crop_pct))
    crops = bool(getattr(processor, "do_center_crop", False))
    if set(size) == {"shortest_edge"} and crops:
        return (crop["height"], crop["width"]), size["shortest_edge"]
    if set(size) == {"height", "width"}:
        whole = (size["height"], size["width"])
        return ((crop["height"], crop["width"]), whole) if crops else (whole, None)
    raise ValueError(f"{path}: size {size} with crop {crop if crops else 'off'} is not supported")


def _per_channel(path: Path, value: float | Sequence[float]) -> tuple[float, ...]:
    """Return a number for each channel; transformers takes one for all of them too."""
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    if numbers.shape not in ((1,), (3,)):
        raise ValueError(f"{path}: image_mean and image_std want one number or three, got {value}")
    return tuple(np.broadcast_to(numbers, (3,)).tolist())


def preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    """Return the preprocessor_config.json that makes transformers do the same.

    Where the margin of the crop is odd and `crop_rounding` is "even", its crop sits up to a pixel aside.

    Raises:
        ValueError: transformers has no processor for it.
    """
    _check_rgb(preprocess, "transformers")
    height, width, _ = preprocess.shape
    resize = preprocess.resize
    if resize is None:
        size = {"height": height, "width": width}
    elif isinstance(resize, tuple):
        size = {"height": resize[0], "width": resize[1]}
    else:
        size = {"shortest_edge": resize}
    return {
        "image_processor_type": "DeiTImageProcessor" if isinstance(resize, tuple) else "BitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": int(INTERPOLATIONS[preprocess.interpolation]),
        "do_center_crop": resize is not None,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }


def from_pretrained_cfg(cfg: Mapping[str, Any]) -> Preprocess:
    """Return what timm does to an image to test a model.

    Sizes for testing at another resolution (test_input_size, test_crop_pct) are left aside, as timm does by default.

    Args:
        cfg: the "pretrained_cfg" of a model's config.json.

    Raises:
        ValueError: it asks for what cannot be done here; the message names it.

    Source:
        timm/data/config.py, resolve_data_config, and timm/data/transforms_factory.py, transforms_imagenet_eval.
    """
    # timm takes an empty value for a missing one.
    given = {name: cfg.get(name) or default for name, default in _TIMM_DEFAULTS.items()}
    if given["interpolation"] not in INTERPOLATIONS:
        raise ValueError(
            f"pretrained_cfg: interpolation {given['interpolation']!r} is not supported; known: "
            f"{', '.join(INTERPOLATIONS)}"
        )
    channels, height, width = given["input_size"]
    mean, std = (tuple(float(value) for value in given[name]) for name in ("mean", "std"))
    if {len(mean), len(std)} - {1, channels}:
        raise ValueError(f"pretrained_cfg: mean {mean} and std {std} are not those of {channels} channels")
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    scaled = (math.floor(height / given["crop_pct"]), math.floor(width / given["crop_pct"]))
    mode = given["crop_mode"]
    if mode == "squash":
        resize = None if scaled == (height, width) else scaled
    elif mode == "center" and height == width:
        resize = scaled[0]
    else:
        raise ValueError(
            f"pretrained_cfg: crop_mode {mode!r} at {height} x {width} is not supported; known are 'squash', and "
            "'center' for squares: give preprocess="
        )
    return Preprocess(
        size=(height, width),
        resize=resize,
        interpolation=given["interpolation"],
        mean=mean,
        std=std,
        crop_rounding="even",
    )


def pretrained_cfg(preprocess: Preprocess) -> dict[str, Any]:
    """Return the fields of timm's pretrained_cfg that make it do the same.

    Where the margin of the crop is odd and `crop_rounding` is "down", its crop sits up to a pixel aside.

    Raises:
        ValueError: timm has no such transform.
    """
    _check_rgb(preprocess, "timm")
    height, width, channels = preprocess.shape
    resize = preprocess.resize
    whole = (height, width) if resize is None else resize
    sides = {(resize, height), (resize, width)} if isinstance(whole, int) else {(whole[0], height), (whole[1], width)}
    crop_pct = _crop_pct(sides)
    if crop_pct is None:
        raise ValueError(f"timm has no crop_pct that resizes to {resize} before a crop to {(height, width)}")
    return {
        "input_size": [channels, height, width],
        "interpolation": preprocess.interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center" if isinstance(resize, int) else "squash",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }


def _crop_pct(sides: set[tuple[Any, int]]) -> float | None:
    """Find the share of each side that a crop keeps, such that timm's rounding gives back the sides."""
    resize, size = min(sides)
    share = size / resize
    for candidate in (share, math.nextafter(share, 0), math.nextafter(share, 1)):
        if all(math.floor(cropped / candidate) == whole for whole, cropped in sides):
            return candidate
    return None


def _check_rgb(preprocess: Preprocess, project: str) -> None:
    if preprocess.channel_order != "rgb":
        raise ValueError(f"{project} gives its models channels as RGB, and this one wants {preprocess.channel_order}")
