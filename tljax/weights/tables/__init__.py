"""One table per published layout."""

from tljax.weights.layout import Layout
from tljax.weights.tables import resnet, resnetv2, vgg, vit_flax, vit_hugging_face, vit_npz, vit_timm

_MODULES = (resnet, resnetv2, vgg, vit_flax, vit_hugging_face, vit_npz, vit_timm)

LAYOUTS: dict[str, Layout] = {layout.name: layout for module in _MODULES for layout in module.LAYOUTS}
