"""Convolutions of images, which have few channels, as products of larger matrices.

GPUs multiply matrices of 16 channels as fast as of 3, which they would fill up to 8 for each position.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def project_patches(
    x: Float[Array, "b h w c"], kernel: Float[Array, "p p c d"], grid: tuple[int, int]
) -> Float[Array, "b n d"]:
    """Convolve with a stride as large as the kernel; of pixels behind the last whole patch nothing is seen."""
    (rows, columns), size = grid, kernel.shape[0]
    x = x[:, : rows * size, : columns * size].reshape(x.shape[0], rows, size, columns, size, x.shape[3])
    # b rows y columns x c -> b (rows columns) (y x c)
    patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * columns, -1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def halve(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"]) -> Float[Array, "b y x d"]:
    """Convolve with stride 2 and a margin of half the kernel, whose side is odd, on all sides.

    The kernel gets a first row and column of zeros, so that squares of 2 x 2 positions become channels of one.
    """
    size, filled = kernel.shape[0], kernel.shape[2] % 2
    margin = (size + 1) // 2
    after = [2 * -(-side // 2) + size - 1 - side - margin for side in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *((margin, most) for most in after), (0, filled)))
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, filled), (0, 0)))
    batch, height, width, channels = x.shape
    # b (y 2) (x 2) c -> b y x (2 2 c), and the kernel likewise
    folded = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    half = (size + 1) // 2
    taps = kernel.reshape(half, 2, half, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return jax.lax.conv_general_dilated(
        folded.reshape(batch, height // 2, width // 2, -1),
        taps.reshape(half, half, 4 * channels, -1),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
