"""Resample position embeddings and patch kernels as the projects that published them do."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from tljax.paths import did_you_mean

Matrix = Float[np.ndarray, "new_size size"]


def resample_positions(
    positions: Float[np.ndarray, "1 n d"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix_tokens: int,
    method: str,
) -> Float[np.ndarray, "1 m d"]:
    """Resample position embeddings to another grid; those of class and distillation tokens are kept as they are.

    Args:
        positions: of the prefix tokens, then of the patches, row by row.
        grid: rows and columns of patches.
        new_grid: those wanted.
        prefix_tokens: tokens with positions before the patches.
        method: one of `METHODS`.

    Raises:
        ValueError: the positions after the prefix are not those of `grid`, or the method is not known.
    """
    patches = positions[0, prefix_tokens:]
    if len(patches) != grid[0] * grid[1]:
        raise ValueError(f"{len(patches)} position embeddings are no grid of {grid[0]} x {grid[1]} patches")
    if grid == new_grid:
        return positions
    resize = _method(method)
    rows, columns = resize(grid[0], new_grid[0]), resize(grid[1], new_grid[1])
    square = patches.reshape(*grid, -1).astype(np.float64)  # (h w) d -> h w d
    resampled = np.einsum("yh,xw,hwd->yxd", rows, columns, square, optimize=True)
    flat = resampled.reshape(1, new_grid[0] * new_grid[1], -1).astype(positions.dtype)  # h w d -> 1 (h w) d
    return np.concatenate([positions[:, :prefix_tokens], flat], axis=1)


def resample_patches(kernel: Float[np.ndarray, "h w i o"], patch_size: int) -> Float[np.ndarray, "p p i o"]:
    """Give a patch projection another patch size, so that a patch and its resized copy have the same embedding.

    Source: FlexiViT (Beyer et al. 2023, arXiv:2212.08013), equation 4: the pseudo-inverse of a bicubic resize with
    antialiasing.
    """
    height, width, channels, features = kernel.shape
    if (height, width) == (patch_size, patch_size):
        return kernel
    resize = np.kron(antialiased_cubic(height, patch_size), antialiased_cubic(width, patch_size))
    flat = kernel.reshape(height * width, channels * features).astype(np.float64)  # h w i o -> (h w) (i o)
    resampled = np.linalg.pinv(resize.T) @ flat
    # (p p) (i o) -> p p i o
    return resampled.reshape(patch_size, patch_size, channels, features).astype(kernel.dtype)


def cubic(size: int, new_size: int) -> Matrix:
    """Bicubic with a = -0.75, half-pixel centres, border values repeated.

    Source: torch.nn.functional.interpolate(mode="bicubic", align_corners=False), which DeiT, MAE, DINO, DINOv2 and
    Hugging Face use; in float64 here.
    """
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        nearby = np.floor(centres).astype(int) + offset
        weights = _keys(np.abs(centres - nearby), -0.75)
        np.add.at(matrix, (np.arange(new_size), np.clip(nearby, 0, size - 1)), weights)
    return matrix


def antialiased_cubic(size: int, new_size: int) -> Matrix:
    """Bicubic with a = -0.5 and a kernel that widens when it shrinks, cut off and rescaled at the border.

    Source: torch.nn.functional.interpolate(mode="bicubic", antialias=True), which timm uses; Pillow's filter.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5)[:, None] * scale
    points = np.arange(size)[None, :] + 0.5
    weights = _keys(np.abs(points - centres) / stretch, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def zoom(size: int, new_size: int) -> Matrix:
    """Bilinear with the corners kept.

    Source: scipy.ndimage.zoom(order=1), which ViT, AugReg and big_vision use.
    """
    points = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    return np.maximum(0.0, 1 - np.abs(points[:, None] - np.arange(size)[None, :]))


METHODS: dict[str, Callable[[int, int], Matrix]] = {
    "cubic": cubic,
    "antialiased_cubic": antialiased_cubic,
    "zoom": zoom,
}


def _method(name: str) -> Callable[[int, int], Matrix]:
    if name not in METHODS:
        raise ValueError(
            f"no way to resample called {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}"
        )
    return METHODS[name]


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Return the cubic kernel of Keys (1981)."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
