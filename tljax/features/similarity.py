"""Which images, and which places in an image, a net finds alike: cosines of features."""

import numpy as np
from jaxtyping import Float, Int

from tljax.features.neighbours import nearest


def unit_rows(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale rows to length 1; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def nearest_images(
    features: Float[np.ndarray, "n d"], queries: Int[np.ndarray, " q"], count: int
) -> tuple[Int[np.ndarray, "q count"], Float[np.ndarray, "q count"]]:
    """Find the rows of highest cosine with some of the rows, those themselves left out.

    Args:
        features: a row per image.
        queries: positions of the rows to find neighbours of.
        count: of neighbours for each.

    Returns:
        Positions and cosines, the nearest first; of equal ones the earlier row.

    Raises:
        ValueError: there are not that many other rows.
    """
    if not 1 <= count < len(features):
        raise ValueError(f"{count} neighbours of an image among {len(features)}, wanted 1 to {len(features) - 1}")
    cosines, positions = nearest(features, features[queries], count + 1)
    is_itself = positions == queries[:, None]
    # One that has so many equals before it is not among its own neighbours.
    is_itself[~is_itself.any(axis=1), -1] = True
    return positions[~is_itself].reshape(-1, count), cosines[~is_itself].reshape(-1, count)


def patch_similarity(grid: Float[np.ndarray, "h w d"], query: Float[np.ndarray, " d"]) -> Float[np.ndarray, "h w"]:
    """Return the cosine of every patch with one vector: a patch of the grid, or the class token."""
    patches = unit_rows(grid.reshape(-1, grid.shape[-1]).astype(np.float32))  # h w d -> (h w) d
    (wanted,) = unit_rows(query.astype(np.float32)[None])
    return (patches @ wanted).reshape(grid.shape[:2])


def split_tokens(
    output: Float[np.ndarray, "..."], prefix_tokens: int, image_shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w d"], Float[np.ndarray, " d"] | None]:
    """Divide what a stage gives for one image into a grid of patches and the class token.

    Args:
        output: tokens [n d] or a feature map [h w c].
        prefix_tokens: number of tokens before the patches; the first is the class token.
        image_shape: height and width of the image, whose proportions the grid of tokens has.

    Returns:
        The grid, and the class token where there is one.

    Raises:
        ValueError: the output is one vector, which has no places left, or its patches fill no grid.
    """
    if output.ndim == 3:
        return output, None
    if output.ndim != 2:
        raise ValueError(f"an output of shape {output.shape} has no patches; name a stage before the net pools")
    patches = output[prefix_tokens:]
    height = round((len(patches) * image_shape[0] / image_shape[1]) ** 0.5)
    if not height or len(patches) % height:
        raise ValueError(f"{len(patches)} patches fill no grid of the proportions {image_shape}")
    grid = patches.reshape(height, -1, output.shape[-1])  # (h w) d -> h w d
    return grid, output[0] if prefix_tokens else None
