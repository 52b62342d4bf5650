"""Vision Transformers as transformers' config.json describes them, and back."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from tljax.models.transformer import SWIGLU
from tljax.models.vit import VitConfig
from tljax.weights.layout import Layout
from tljax.weights.tables import vit_hugging_face as tables

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
# What keys of the heads begin with: no prefix stands before them.
HEAD_KEYS = ("classifier.", "cls_classifier.", "distillation_classifier.", "visual_projection.")
# Constants of modeling_{vit,deit}.py and so on that no config changes; others are refused.
_SWITCHES = {"qkv_bias": True, "apply_layernorm": True}


def from_hugging_face(config: Mapping[str, Any], keys: Collection[str]) -> VitConfig:
    """Return the architecture that a config.json of a Vision Transformer describes, without a classifier.

    Args:
        config: its values, those included that are the defaults of transformers.
        keys: of the weights, which tell what stands on the backbone.

    Raises:
        ValueError: values are missing, or ask for what the net cannot do; all in one message.
    """
    model_type = str(config.get("model_type"))
    # A model of two towers keeps each in a config of its own.
    tower = config.get("vision_config", config)
    problems = [
        f"{name} = {tower[name]!r} (wanted {want!r})" for name, want in _SWITCHES.items() if _is_off(tower, name)
    ]
    activation = tower.get("hidden_act")
    if activation not in _ACTIVATIONS:
        problems.append(f"hidden_act = {activation!r} (wanted one of {', '.join(_ACTIVATIONS)})")
    wanted = ("num_hidden_layers", "hidden_size", "num_attention_heads", "patch_size", "image_size", "layer_norm_eps")
    problems += [f"{name} is missing" for name in wanted if name not in tower]
    if not isinstance(tower.get("patch_size"), int):
        problems.append(f"patch_size = {tower.get('patch_size')!r} (wanted one number)")
    if problems:
        raise ValueError(f"config.json of model_type {model_type!r}: not supported: " + "; ".join(problems))
    size = tower["image_size"]
    return VitConfig(
        depth=tower["num_hidden_layers"],
        width=tower["hidden_size"],
        num_heads=tower["num_attention_heads"],
        patch_size=tower["patch_size"],
        image_size=tuple(size) if isinstance(size, list | tuple) else size,
        in_channels=tower.get("num_channels", 3),
        norm_epsilon=tower["layer_norm_eps"],
        has_partial_patches=any(side % tower["patch_size"] for side in np.atleast_1d(size).tolist()),
        **{"activation": _ACTIVATIONS[activation], **MODEL_TYPES[model_type](tower, keys)},
    )


def _is_off(tower: Mapping[str, Any], name: str) -> bool:
    return name in tower and tower[name] != _SWITCHES[name]


def _has(keys: Collection[str], *names: str) -> bool:
    return any(key.startswith(names) for key in keys)


def _plain(tower: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {"mlp_width": _mlp_width(tower["intermediate_size"], tower["hidden_size"])}


def _deit(tower: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    both = _has(keys, "distillation_classifier.")
    return {
        **_plain(tower, keys),
        "has_distillation_token": True,
        "pooling": "cls_distillation" if both else "cls",
    }


def _dinov2(tower: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    hidden = int(tower["hidden_size"] * tower["mlp_ratio"])
    is_gated = tower["use_swiglu_ffn"]
    # modeling_dinov2.py, Dinov2SwiGLUFFN: two thirds, rounded up to a multiple of 8.
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8 if is_gated else hidden
    return {
        "mlp_width": _mlp_width(hidden, tower["hidden_size"]),
        "use_layer_scale": True,
        "pooling": "cls_mean",
        "num_registers": tower.get("num_register_tokens", 0),
        **({"activation": SWIGLU} if is_gated else {}),
    }


def _clip(tower: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    head = {"has_head_bias": False} if _has(keys, "visual_projection.") else {}
    return {**_plain(tower, keys), "has_patch_bias": False, "has_embed_norm": True, **head}


def _siglip(tower: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {
        **_plain(tower, keys),
        "has_class_token": False,
        "pooling": "mean" if _has(keys, "classifier.") else "attention",
    }


def _mlp_width(hidden: int, width: int) -> int | None:
    return None if hidden == 4 * width else hidden


MODEL_TYPES: dict[str, Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]] = {
    "vit": _plain,
    "vit_mae": _plain,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
}


def to_hugging_face(config: VitConfig) -> dict[str, Any]:
    """Return the config.json of an architecture, as plain values.

    Raises:
        ValueError: no class of transformers computes what the net computes; all reasons in one message.
    """
    kind = _kind(config)
    problems = [text for is_so, text in _limits(config, kind) if is_so]
    if problems:
        raise ValueError(
            f"transformers' {kind} cannot be this net: {'; '.join(problems)}. Export to timm, which may hold it"
        )
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    values = {
        "num_hidden_layers": config.depth,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch_size,
        "image_size": list(config.image_size) if isinstance(config.image_size, tuple) else config.image_size,
        "num_channels": config.in_channels,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": names.get(config.activation, "gelu"),
    }
    if kind in ("dinov2", "dinov2_with_registers"):
        values |= _dinov2_sizes(config)
    else:
        values["intermediate_size"] = config.hidden_width
    if kind == "siglip" and config.num_classes:
        return {"model_type": kind, "architectures": _classes(config, kind), "vision_config": _without_pool(values)}
    model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(kind, kind)
    extra = {"projection_dim": config.num_classes} if kind == "clip" and config.num_classes else {}
    return {"model_type": model_type, "architectures": _classes(config, kind), **values, **extra}


def _without_pool(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "model_type": "siglip_vision_model", "vision_use_head": False}


def _kind(config: VitConfig) -> str:
    """Return the model type that is nearest."""
    if not config.has_class_token:
        return "siglip"
    if config.has_embed_norm:
        return "clip"
    if config.use_layer_scale:
        return "dinov2_with_registers" if config.num_registers else "dinov2"
    return "deit" if config.has_distillation_token else "vit"


def _limits(config: VitConfig, kind: str) -> list[tuple[bool, str]]:
    """List what the classes of a model type cannot do, and whether the net does it."""
    poolings = {"siglip": ("mean",) if config.num_classes else ("attention",), "deit": ("cls", "cls_distillation")}
    dinov2 = kind.startswith("dinov2")
    wanted = poolings.get(kind, ("cls_mean",) if dinov2 and config.num_classes else ("cls", "cls_mean"))
    wanted = ("cls",) if kind in ("vit", "clip") else wanted
    return [
        (config.pooling not in wanted, f"it pools by {' or '.join(wanted)}, this by {config.pooling}"),
        (config.is_norm_after_pooling, "it normalises before it pools"),
        (config.representation_width > 0, "its classifier has no tanh layer before it"),
        (not config.has_prefix_positions, "its class token has a position"),
        (config.num_registers > 0 and kind != "dinov2_with_registers", "it has no registers"),
        (config.use_layer_scale and not dinov2, "it has no layer scale"),
        (config.activation == SWIGLU and not dinov2, "it has no gated MLP"),
        (config.has_embed_norm != (kind == "clip"), "only CLIP normalises the tokens before the first block"),
        (config.has_patch_bias == (kind == "clip"), "CLIP's patch projection has no bias, all others' have one"),
        (config.has_distillation_token != (kind == "deit"), "DeiT and only DeiT has a distillation token"),
        (kind == "clip" and config.num_classes > 0 and config.has_head_bias, "its projection has no bias"),
        (kind != "clip" and not config.has_head_bias, "its classifier has a bias"),
        (kind in ("clip", "siglip") and isinstance(config.image_size, tuple), "its images are square"),
    ]


def _classes(config: VitConfig, kind: str) -> list[str]:
    prefix = {
        "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters",
        "siglip": "Siglip", "clip": "CLIP",
    }[kind]  # fmt: skip
    if kind == "clip":
        return ["CLIPVisionModelWithProjection" if config.num_classes else "CLIPVisionModel"]
    if not config.num_classes:
        return ["SiglipVisionModel" if kind == "siglip" else f"{prefix}Model"]
    return [f"{prefix}ForImageClassification{'WithTeacher' if config.pooling == 'cls_distillation' else ''}"]


def _dinov2_sizes(config: VitConfig) -> dict[str, Any]:
    """Return the numbers that give back the width of the MLP."""
    is_gated = config.activation == SWIGLU
    hidden = config.hidden_width * 3 / 2 if is_gated else config.hidden_width
    ratio = hidden / config.width
    registers = {"num_register_tokens": config.num_registers} if config.num_registers else {}
    return {"mlp_ratio": int(ratio) if ratio == int(ratio) else ratio, "use_swiglu_ffn": is_gated, **registers}


def layout_for(config: VitConfig) -> Layout:
    """Return the layout in which transformers would publish a net."""
    return {
        "vit": tables.VIT, "deit": tables.DEIT, "clip": tables.CLIP, "siglip": tables.SIGLIP,
    }.get(_kind(config), tables.DINOV2)  # fmt: skip


def export_prefix(config: VitConfig) -> str:
    """Return what stands before the keys of the backbone."""
    kind = _kind(config)
    if kind in ("clip", "siglip"):
        return "vision_model."
    return f"{kind}." if config.num_classes else ""


def extra_arrays(config: VitConfig) -> dict[str, np.ndarray]:
    """Return what transformers wants and no net of ours has: DINOv2's mask token, of pretraining, as zeros."""
    if not _kind(config).startswith("dinov2"):
        return {}
    return {"embeddings.mask_token": np.zeros((1, config.width), np.float32)}
