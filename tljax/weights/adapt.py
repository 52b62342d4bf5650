"""Make pretrained params fit another image size or other classes."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# torch's bicubic kernel (Keys 1981 with a = -0.75); jax.image.resize has a = -0.5.
_CUBIC_A = -0.75


def resample_positions(
    positions: Float[np.ndarray, "1 n d"], grid: int, prefix_tokens: int
) -> Float[np.ndarray, "1 m d"]:
    """Resample position embeddings to another grid as DINOv2 and its ports do.

    Bicubic with a = -0.75, half-pixel centres, border values repeated, no antialiasing. The positions of
    class and other prefix tokens are kept as they are.

    Args:
        positions: of the prefix tokens, then of a square grid of patches, row by row.
        grid: side of the new grid in patches.
        prefix_tokens: tokens before the patches.

    Raises:
        ValueError: the positions after the prefix are no square grid.

    Source:
        torch.nn.functional.interpolate(mode="bicubic", align_corners=False), computed here in float64.
    """
    patches = positions[0, prefix_tokens:]
    side = int(np.sqrt(len(patches)))
    if side * side != len(patches):
        raise ValueError(f"{len(patches)} position embeddings are no square grid; a square image size is needed")
    if side == grid:
        return positions
    square = patches.reshape(side, side, -1).astype(np.float64)  # (h w) d -> h w d
    matrix = cubic_matrix(side, grid)
    resampled = np.einsum("yh,xw,hwd->yxd", matrix, matrix, square, optimize=True)
    flat = resampled.reshape(1, grid * grid, -1).astype(positions.dtype)  # h w d -> 1 (h w) d
    return np.concatenate([positions[:, :prefix_tokens], flat], axis=1)


def cubic_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Return the matrix that resamples `size` points to `new_size` along one axis."""
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        nearby = np.floor(centres).astype(int) + offset
        weights = _cubic(np.abs(centres - nearby))
        np.add.at(matrix, (np.arange(new_size), np.clip(nearby, 0, size - 1)), weights)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (_CUBIC_A + 2) * distance**3 - (_CUBIC_A + 3) * distance**2 + 1
    far = _CUBIC_A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def adapt(
    params: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], grid: int, prefix_tokens: int
) -> dict[str, np.ndarray]:
    """Resample the position embeddings to `grid` and add zeros for a new head.

    Args:
        params: of the pretrained net, without a head where that is to be new.
        shapes: path to shape of the new head's params.
        grid: patches along one side at the new image size.
        prefix_tokens: tokens before the patches.
    """
    adapted = dict(params)
    adapted["embed/pos_embed"] = resample_positions(adapted["embed/pos_embed"], grid, prefix_tokens)
    # A head of zeros starts from equal probabilities and lets its own first step decide.
    return {**adapted, **{path: np.zeros(shape, np.float32) for path, shape in shapes.items()}}
