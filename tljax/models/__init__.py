"""Architectures by name."""

from typing import Any

from tljax.models import resnet, resnetv2, vgg, vit_architectures
from tljax.models.net import Net
from tljax.models.resnet import ResNetConfig
from tljax.models.resnetv2 import ResNetV2Config
from tljax.models.vgg import VggConfig
from tljax.models.vit import VitConfig
from tljax.paths import did_you_mean

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "Net",
    "ResNetConfig",
    "ResNetV2Config",
    "VggConfig",
    "VitConfig",
    "architecture",
]

FAMILIES = {"resnet": ResNetConfig, "resnetv2": ResNetV2Config, "vgg": VggConfig, "vit": VitConfig}

ARCHITECTURES = {
    **resnet.ARCHITECTURES,
    **resnetv2.ARCHITECTURES,
    **vgg.ARCHITECTURES,
    **vit_architectures.ARCHITECTURES,
}


def architecture(name: str) -> Any:
    """Return the architecture of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"no architecture {name!r}{did_you_mean(name, ARCHITECTURES)}; known: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
