"""Layouts of the Flax models of transformers 4, whose keys follow those of the torch models."""

import dataclasses

from tljax.weights.layout import CONV, LINEAR, Layout, Rule
from tljax.weights.tables.vit_hugging_face import CLIP, DINOV2, VIT

# Kernels have our axes already; of one that does the work of several, the parts stand side by side.
_AXES = {LINEAR: None, CONV: None, "(parts o) i -> parts i o": "i (parts o) -> parts i o"}


def _renamed(rule: Rule) -> Rule:
    """Turn a rule for a torch model into that for its Flax twin."""
    module, _, name = rule.source.rpartition(".")
    if name == "weight":
        kind = rule.targets[0].rpartition("/")[2]
        name = kind if kind in ("kernel", "scale") else "embedding"
    return Rule(f"{module}.{name}".replace(".", "/"), rule.target, _AXES.get(rule.axes or "", rule.axes))


def _key(key: str) -> str:
    """Rename an anchor: the scale of a norm is no kernel."""
    module, _, name = key.rpartition(".")
    if name == "weight":
        name = "scale" if "norm" in module.rpartition(".")[2] else "kernel"
    return f"{module}.{name}".replace(".", "/")


def _flax(layout: Layout, name: str, description: str, prefixes: tuple[str, ...]) -> Layout:
    return dataclasses.replace(
        layout,
        name=name,
        description=description,
        prefixes=prefixes,
        anchors=tuple(map(_key, layout.anchors)),
        absent=tuple(map(_key, layout.absent)),
        rules=lambda config: tuple(map(_renamed, layout.rules(config))),
        ignored=tuple(pattern.replace(r"\.", "/") for pattern in layout.ignored),
    )


# models/{vit,dinov2,clip}/modeling_flax_*.py of transformers 4.
VIT_FLAX = _flax(VIT, "hf-flax-vit", "Hugging Face's FlaxViTModel and FlaxViTForImageClassification", ("", "vit/"))
DINOV2_FLAX = _flax(DINOV2, "hf-flax-dinov2", "Hugging Face's FlaxDinov2Model and its classifier", ("", "dinov2/"))
CLIP_FLAX = _flax(CLIP, "hf-flax-clip", "the image tower of Hugging Face's FlaxCLIPModel", ("vision_model/", ""))

LAYOUTS = (VIT_FLAX, DINOV2_FLAX, CLIP_FLAX)
