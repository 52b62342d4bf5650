"""Record how torch and timm resample position embeddings and patch kernels: python -m tests.golden.make_resample."""

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from tests.golden.record import FOLDER

GRIDS = (((7, 7), (4, 4)), ((7, 7), (5, 9)), ((4, 6), (8, 7)), ((3, 3), (3, 3)), ((14, 14), (3, 3)))
PATCHES = ((16, 8), (8, 12), (14, 16))


def main() -> None:
    """Write resample.npz."""
    rng = np.random.default_rng(0)
    recorded: dict[str, np.ndarray] = {"versions": np.array([f"torch {torch.__version__}, timm {timm.__version__}"])}
    for old, new in GRIDS:
        positions = rng.normal(size=(1, 2 + old[0] * old[1], 5)).astype(np.float32)
        name = f"{old[0]}x{old[1]}_{new[0]}x{new[1]}"
        recorded[f"{name}:input"] = positions
        antialiased = resample_abs_pos_embed(torch.from_numpy(positions), list(new), list(old), num_prefix_tokens=2)
        recorded[f"{name}:antialiased_cubic"] = antialiased.numpy()
        grid = torch.from_numpy(
            positions[:, 2:].reshape(1, *old, 5).transpose(0, 3, 1, 2).copy()
        )  # 1 (h w) d -> 1 d h w
        resized = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False).numpy()
        flat = resized.transpose(0, 2, 3, 1).reshape(1, new[0] * new[1], 5)  # 1 d h w -> 1 (h w) d
        recorded[f"{name}:cubic"] = np.concatenate([positions[:, :2], flat], axis=1)
    for old, new in PATCHES:
        kernel = rng.normal(size=(6, 3, old, old)).astype(np.float32)  # torch's o i h w
        recorded[f"patch_{old}_{new}:input"] = kernel
        recorded[f"patch_{old}_{new}"] = resample_patch_embed(torch.from_numpy(kernel), [new, new]).numpy()
    np.savez_compressed(FOLDER / "resample.npz", **recorded)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
