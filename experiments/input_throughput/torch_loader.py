"""The same input as a torch DataLoader: for `compare.py`, where torch is installed."""

import io
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tljax.data.augment import draw_crop


class Crops(Dataset):
    """Random crops of the JPEG files below a folder, mirrored or not, as bytes [h w 3] and a label."""

    def __init__(self, folder: Path, size: int, decode: str):
        self.files = sorted(folder.glob("*/*.jpg"))
        self.classes = sorted({file.parent.name for file in self.files})
        self.size, self.decode = size, decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self.files[index]
        data = file.read_bytes()
        if self.decode == "simplejpeg":
            image = Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))
        else:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        generator = np.random.default_rng(int(torch.randint(2**31, ()).item()))
        top, left, height, width = draw_crop(image.height, image.width, generator, (0.08, 1.0))
        box = (left, top, left + width, top + height)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if generator.integers(2):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), self.classes.index(file.parent.name)


def make_loader(folder: Path, size: int, batch_size: int, num_workers: int, *, decode: str) -> DataLoader:
    """Return the loader, with torch's defaults but for what makes it fast: its workers stay for the next epoch."""
    return DataLoader(
        Crops(folder, size, decode), batch_size=batch_size, shuffle=True, num_workers=num_workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
