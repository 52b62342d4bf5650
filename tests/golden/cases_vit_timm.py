"""Vision Transformers in timm's names, and in Meta's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.golden.record import Case, as_is

# Three rows of five patches.
IMAGE_SIZE = (24, 40)
SMALL = {"width": 24, "num_heads": 3, "patch_size": 8, "image_size": IMAGE_SIZE}


def taps(model: Any) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Name the module that ends each of our stages but the head."""
    paths = {"embed": "norm_pre", **{f"block_{index:02d}": f"blocks.{index}" for index in range(len(model.blocks))}}
    paths["norm"] = "fc_norm" if hasattr(model.fc_norm, "weight") else "norm"
    if model.attn_pool is not None:
        paths["pool"] = "attn_pool"
    return {stage: (path, as_is) for stage, path in paths.items()}


def _build(settings: Mapping[str, Any], *, is_distilled: bool = False) -> Any:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    small = {"embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": IMAGE_SIZE}
    kind = VisionTransformerDistilled if is_distilled else VisionTransformer
    return kind(**{**small, **settings})


def _timm(architecture: Mapping[str, Any], settings: Mapping[str, Any], *, is_distilled: bool = False) -> Case:
    model = _build(settings, is_distilled=is_distilled)
    return Case(
        layout="timm-vit",
        family="vit",
        architecture={**SMALL, **architecture},
        image_size=IMAGE_SIZE,
        model=model,
        taps=taps(model),
    )


def deep() -> Case:
    """Twelve blocks: the names of the last sort before that of the third."""
    return _timm(
        {"depth": 12, "num_classes": 7, "mlp_width": 36}, {"depth": 12, "num_classes": 7, "mlp_ratio": 1.5}
    )  # fmt: skip


def grey() -> Case:
    """One channel."""
    return _timm(
        {"depth": 2, "num_classes": 3, "in_channels": 1}, {"depth": 2, "num_classes": 3, "in_chans": 1}
    )  # fmt: skip


def distilled() -> Case:
    return _timm(
        {"depth": 2, "num_classes": 5, "has_distillation_token": True, "pooling": "cls_distillation"},
        {"depth": 2, "num_classes": 5},
        is_distilled=True,
    )


def deit3() -> Case:
    return _timm(
        {"depth": 2, "num_classes": 5, "use_layer_scale": True, "has_prefix_positions": False},
        {"depth": 2, "num_classes": 5, "init_values": 1e-6, "no_embed_class": True},
    )


def finetuned_mae() -> Case:
    return _timm(
        {"depth": 2, "num_classes": 6, "is_norm_after_pooling": True, "pooling": "mean"},
        {"depth": 2, "num_classes": 6, "global_pool": "avg"},
    )


def clip() -> Case:
    from functools import partial

    from timm.layers import LayerNorm

    return _timm(
        {
            "depth": 3, "num_classes": 9, "has_embed_norm": True, "has_patch_bias": False,
            "activation": "quick_gelu", "norm_epsilon": 1e-5,
        },
        {
            "depth": 3, "num_classes": 9, "pre_norm": True, "act_layer": "quick_gelu",
            "norm_layer": partial(LayerNorm, eps=1e-5),
        },
    )  # fmt: skip


def siglip() -> Case:
    return _timm(
        {
            "depth": 2, "num_classes": 4, "has_class_token": False, "pooling": "attention",
            "activation": "gelu_tanh", "mlp_width": 88,
        },
        {
            "depth": 2, "num_classes": 4, "class_token": False, "global_pool": "map", "act_layer": "gelu_tanh",
            "mlp_ratio": 88.5 / 24,
        },
    )  # fmt: skip


_GIANT = {"depth": 2, "use_layer_scale": True, "num_registers": 4, "activation": "swiglu", "mlp_width": 64}


def _giant_settings() -> dict[str, Any]:
    from timm.layers import SwiGLUPacked
    from torch import nn

    return {
        "depth": 2, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "mlp_ratio": 128.5 / 24,
        "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "num_classes": 0,
    }  # fmt: skip


def dinov2_registers() -> Case:
    """The giant: registers, layer scale and SwiGLU; timm keeps no position for the class token."""
    return _timm({**_GIANT, "has_prefix_positions": False, "num_classes": 8}, {**_giant_settings(), "num_classes": 8})


def _filtered(
    layout: str, architecture: Mapping[str, Any], settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Case:
    """The authors' keys, brought by timm's own filter into timm's net."""
    model = _build(settings)

    def load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
        import re

        import torch
        from timm.models.vision_transformer import checkpoint_filter_fn

        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        flat = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in tensors.items()}
        model.load_state_dict(checkpoint_filter_fn(flat, model, adapt_layer_scale=True))

    return Case(
        layout=layout,
        family="vit",
        architecture={**SMALL, **architecture},
        image_size=IMAGE_SIZE,
        model=model,
        taps=taps(model),
        shapes=shapes,
        load=load,
    )


def deit3_authors() -> Case:
    import re

    settings = {"depth": 2, "num_classes": 5, "init_values": 1e-6, "no_embed_class": True}
    state = _build(settings).state_dict()
    return _filtered(
        "meta-deit3",
        {"depth": 2, "num_classes": 5, "use_layer_scale": True, "has_prefix_positions": False},
        settings,
        {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): tuple(value.shape) for key, value in state.items()},
    )


def mae_authors() -> Case:
    """A pretraining checkpoint, decoder and all; timm's net takes the encoder."""
    import torch

    model = _build({"depth": 2, "num_classes": 0})
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    decoder = {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, 24), "decoder_blocks.0.norm1.weight": (8,)}

    def load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in state})

    return Case(
        layout="meta-mae",
        family="vit",
        architecture={**SMALL, "depth": 2},
        image_size=IMAGE_SIZE,
        model=model,
        taps=taps(model),
        shapes={**state, **decoder},
        load=load,
    )


def _meta_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Rename the keys of timm's net into Meta's, whose class token has a position."""
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 24)}
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        if key == "pos_embed":
            shape = (1, 16, 24)
        is_gated = "reg_token" in model.state_dict()
        renamed = key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3") if is_gated else key
        shapes[renamed.replace("reg_token", "register_tokens")] = shape
    return shapes


def meta_dinov2_registers() -> Case:
    settings = _giant_settings()
    return _filtered("meta-dinov2", _GIANT, settings, _meta_shapes(_build(settings)))


def meta_dinov2_chunked() -> Case:
    settings = {"depth": 8, "init_values": 1e-5, "num_classes": 0}
    shapes = _meta_shapes(_build(settings))
    chunked = {}
    for key, shape in shapes.items():
        first, _, rest = key.partition(".")
        layer = rest.partition(".")[0]
        chunked[f"blocks.{int(layer) // 2}.{rest}" if first == "blocks" else key] = shape
    return _filtered("meta-dinov2-chunked", {"depth": 8, "use_layer_scale": True}, settings, chunked)


CASES = {
    "vit_timm_deep": deep,
    "vit_timm_grey": grey,
    "vit_timm_distilled": distilled,
    "vit_timm_deit3": deit3,
    "vit_timm_finetuned_mae": finetuned_mae,
    "vit_timm_clip": clip,
    "vit_timm_siglip": siglip,
    "vit_timm_dinov2_registers": dinov2_registers,
    "vit_timm_deit3_authors": deit3_authors,
    "vit_timm_mae_authors": mae_authors,
    "vit_timm_meta_dinov2_registers": meta_dinov2_registers,
    "vit_timm_meta_dinov2_chunked": meta_dinov2_chunked,
}
