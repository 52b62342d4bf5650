"""Weights and images that are functions of their names: the recorder and the tests make the same ones from nothing."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def array(key: str, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Return the array of that key: of the size that training leaves, and nowhere zero or one by default.

    Kernels keep the variance of what passes through them, norms scale by about 1, running variances are positive.
    """
    if not np.issubdtype(np.dtype(dtype), np.floating):
        return np.zeros(shape, dtype)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    name = key.replace("/", ".").rsplit(".", 1)[-1]
    if name in ("running_var", "var", "moving_variance"):
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    if len(shape) <= 1 and name in ("weight", "scale", "gamma", "lambda1"):
        return rng.normal(1.0, 0.2, shape).astype(dtype)
    if len(shape) <= 1:
        return rng.normal(0.0, 0.2, shape).astype(dtype)
    # Either way of writing a kernel: the size of all axes but the largest is near its fan-in.
    fan_in = max(int(np.prod(shape)) // max(shape), 1)
    return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(dtype)


def arrays(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Return the array of every key; `dtypes` names those that are not float32."""
    return {key: array(key, shape, (dtypes or {}).get(key, "float32")) for key, shape in shapes.items()}


def images(height: int, width: int, channels: int = 3, batch: int = 2) -> np.ndarray:
    """Return normalised images [b h w c], float32."""
    rng = np.random.default_rng([height, width, channels])
    return rng.normal(size=(batch, height, width, channels)).astype(np.float32)


def picture(height: int, width: int) -> np.ndarray:
    """Return waves and noise, uint8 [h w 3]."""
    rng = np.random.default_rng([height, width])
    waves = 127 + 90 * np.sin(np.arange(height)[:, None, None] / 5 + np.arange(width)[None, :, None] / 9 + np.arange(3))
    return np.clip(waves + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
