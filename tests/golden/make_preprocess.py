"""Record what timm's evaluation transforms make of images: python -m tests.golden.make_preprocess."""

import json
from typing import Any

import numpy as np
import timm
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.golden.record import FOLDER
from tests.golden.synthetic import picture

SIZES = ((61, 61), (90, 57), (57, 91), (25, 200), (44, 3))
CONFIGS: dict[str, dict[str, Any]] = {
    "center": {"input_size": [3, 48, 48], "crop_pct": 0.875, "interpolation": "bicubic"},
    "center_odd": {"input_size": [3, 47, 47], "crop_pct": 0.9, "interpolation": "bilinear"},
    "center_whole": {"input_size": [3, 48, 48], "crop_pct": 1.0, "interpolation": "lanczos"},
    "squash": {"input_size": [3, 40, 40], "crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bicubic"},
    "squash_whole": {"input_size": [3, 40, 56], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "defaults": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def main() -> None:
    """Write preprocess.npz."""
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}, Pillow {Image.__version__}"  # pyright: ignore[reportAttributeAccessIssue]
    recorded: dict[str, Any] = {"configs": np.array([json.dumps(CONFIGS)]), "versions": np.array([versions])}
    for name, config in CONFIGS.items():
        data = resolve_data_config({}, pretrained_cfg=config)
        for size in SIZES:
            image = Image.fromarray(picture(*size))
            pixels: Any = create_transform(**data, normalize=False)(image)
            floats: Any = create_transform(**data)(image)
            recorded[f"{name}:{size[0]}x{size[1]}:pixels"] = pixels.numpy().transpose(1, 2, 0)  # c h w -> h w c
            # Of the floats two rows are enough: they follow from the pixels.
            recorded[f"{name}:{size[0]}x{size[1]}:floats"] = floats.numpy().transpose(1, 2, 0)[:2]
    np.savez_compressed(FOLDER / "preprocess.npz", **recorded)


if __name__ == "__main__":
    main()
