"""Architectures by name."""

from tljax.models.net import Net
from tljax.models.vit import VitConfig
from tljax.paths import did_you_mean

__all__ = ["ARCHITECTURES", "Net", "VitConfig", "architecture"]

ARCHITECTURES = {
    "vit_s16": VitConfig(depth=12, width=384, num_heads=6, patch_size=16, image_size=224),
    "dinov2_vits14": VitConfig(
        depth=12, width=384, num_heads=6, patch_size=14, image_size=518, use_layer_scale=True, pooling="cls_mean"
    ),
    "dinov2_vitb14": VitConfig(
        depth=12, width=768, num_heads=12, patch_size=14, image_size=518, use_layer_scale=True, pooling="cls_mean"
    ),
    "dinov2_vitl14": VitConfig(
        depth=24, width=1024, num_heads=16, patch_size=14, image_size=518, use_layer_scale=True, pooling="cls_mean"
    ),
}


def architecture(name: str) -> VitConfig:
    """Return the architecture of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"no architecture {name!r}{did_you_mean(name, ARCHITECTURES)}; known: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
