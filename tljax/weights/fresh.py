"""Networks without pretraining, by name: what any pretrained one has to beat."""

import dataclasses
from typing import Any

import jax

from tljax.models import Net, architecture
from tljax.models.net import Arrays
from tljax.preprocess import Preprocess
from tljax.weights.layout import Layout
from tljax.weights.tables import LAYOUTS

FRESH = "random"


def open_fresh(place: str) -> tuple[Any, int]:
    """Return the architecture and the seed that "ARCHITECTURE" or "ARCHITECTURE@SEED" stands for; the seed is 0 there.

    Raises:
        ValueError: there is no such architecture, or the seed is no whole number.
    """
    name, mark, seed = place.partition("@")
    if mark and not seed.isdecimal():
        raise ValueError(f"{FRESH}:{place}: the seed is {seed!r}, wanted a whole number: {FRESH}:{name}@1")
    return architecture(name), int(seed) if mark else 0


def draw(target: Any, seed: int) -> tuple[Arrays, Arrays]:
    """Draw params and statistics as the layers' own papers start them; the head, if any, starts at zero."""
    return Net(target).init(jax.random.key(seed))


def fresh_preprocess(native: Any) -> Preprocess:
    """Return what a network that has seen no images may as well have: straight to its size, ImageNet's mean and std."""
    sized = "image_size" in {item.name for item in dataclasses.fields(native)}
    return Preprocess(size=native.image_size if sized else 224)


def layout_of(native: Any) -> Layout:
    """Return the first layout that can hold an architecture: it says how position embeddings are resampled."""
    return next(layout for layout in LAYOUTS.values() if isinstance(native, layout.family))
