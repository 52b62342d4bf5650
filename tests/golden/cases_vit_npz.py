"""Vision Transformers in Google's names: timm's net, filled by timm's own reader of npz files.

timm computes the exact GELU unless told otherwise; the cases tell it what Google's code computes.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.cases_vit_timm import IMAGE_SIZE, SMALL, taps
from tests.golden.record import Case, as_is

WIDTH, HEADS, PATCHES = 24, 3, 15


def _linear(name: str, width: int, features: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (width, features), f"{name}/bias": (features,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}


def _attention(name: str) -> dict[str, tuple[int, ...]]:
    size, shapes = WIDTH // HEADS, {}
    for part in ("query", "key", "value"):
        shapes |= {f"{name}/{part}/kernel": (WIDTH, HEADS, size), f"{name}/{part}/bias": (HEADS, size)}
    return {**shapes, f"{name}/out/kernel": (HEADS, size, WIDTH), f"{name}/out/bias": (WIDTH,)}


def _mlp(name: str, mlp_width: int) -> dict[str, tuple[int, ...]]:
    return {**_linear(f"{name}/Dense_0", WIDTH, mlp_width), **_linear(f"{name}/Dense_1", mlp_width, WIDTH)}


def _block(name: str, mlp_width: int, *, is_first_release: bool) -> dict[str, tuple[int, ...]]:
    norm2, mlp, attention = (2, 3, 1) if is_first_release else (1, 0, 0)
    return {
        **_norm(f"{name}/LayerNorm_0"),
        **_attention(f"{name}/MultiHeadDotProductAttention_{attention}"),
        **_norm(f"{name}/LayerNorm_{norm2}"),
        **_mlp(f"{name}/MlpBlock_{mlp}", mlp_width),
    }


def _embed(positions: str, num_positions: int, *, has_class_token: bool) -> dict[str, tuple[int, ...]]:
    shapes = {"embedding/kernel": (8, 8, 3, WIDTH), "embedding/bias": (WIDTH,), positions: (1, num_positions, WIDTH)}
    return {**shapes, "cls": (1, 1, WIDTH)} if has_class_token else shapes


def _first_release(depth: int, **heads: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    shapes = _embed("Transformer/posembed_input/pos_embedding", 1 + PATCHES, has_class_token=True)
    for layer in range(depth):
        shapes |= _block(f"Transformer/encoderblock_{layer}", 4 * WIDTH, is_first_release=True)
    shapes |= _norm("Transformer/encoder_norm")
    for name, (width, features) in heads.items():
        shapes |= _linear(name, width, features)
    return shapes


def _load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **arrays)
        model.load_pretrained(str(path))


def _build(**settings: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        embed_dim=WIDTH, num_heads=HEADS, patch_size=8, img_size=IMAGE_SIZE, act_layer="gelu_tanh", **settings
    )


def _case(layout: str, architecture: Mapping[str, Any], model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Case:
    return Case(
        layout=layout,
        family="vit",
        architecture={**SMALL, "activation": "gelu_tanh", **architecture},
        image_size=IMAGE_SIZE,
        model=model,
        taps=taps(model),
        shapes=shapes,
        load=_load,
    )


def augreg() -> Case:
    return _case(
        "augreg-npz",
        {"depth": 11, "num_classes": 5},
        _build(depth=11, num_classes=5),
        _first_release(11, head=(WIDTH, 5)),
    )


def original() -> Case:
    """The first ViTs have a tanh layer before the classifier, which timm has dropped: it is put back here."""
    from torch import nn

    class WithRepresentation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = _build(depth=2, num_classes=0)
            self.pre_logits = nn.Linear(WIDTH, 20)
            self.tanh = nn.Tanh()
            self.head = nn.Linear(20, 6)

        def forward(self, x: Any) -> Any:
            return self.head(self.tanh(self.pre_logits(self.vit(x))))

    def load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
        import torch

        _load(model.vit, arrays)
        for name in ("pre_logits", "head"):
            layer = model.get_submodule(name)
            layer.weight.data = torch.from_numpy(arrays[f"{name}/kernel"].T.copy())
            layer.bias.data = torch.from_numpy(arrays[f"{name}/bias"])

    model = WithRepresentation()
    inner = {stage: (f"vit.{path}", change) for stage, (path, change) in taps(model.vit).items()}
    return Case(
        layout="augreg-npz",
        family="vit",
        architecture={**SMALL, "activation": "gelu_tanh", "depth": 2, "num_classes": 6, "representation_width": 20},
        image_size=IMAGE_SIZE,
        model=model,
        taps={**inner, "pre_logits": ("tanh", as_is)},
        shapes=_first_release(2, pre_logits=(WIDTH, 20), head=(20, 6)),
        load=load,
    )


def _big_vision(depth: int, mlp_width: int, *, has_class_token: bool) -> dict[str, tuple[int, ...]]:
    shapes = _embed("pos_embedding", PATCHES, has_class_token=has_class_token) | _norm("Transformer/encoder_norm")
    for layer in range(depth):
        shapes |= _block(f"Transformer/encoderblock_{layer}", mlp_width, is_first_release=False)
    return shapes


def big_vision() -> Case:
    """pool_type="tok": positions are added before the class token is put in front."""
    shapes = _big_vision(2, 96, has_class_token=True) | _linear("head", WIDTH, 7)
    return _case(
        "big-vision-npz",
        {"depth": 2, "num_classes": 7, "has_prefix_positions": False},
        _build(depth=2, num_classes=7, no_embed_class=True),
        {f"params/{key}": shape for key, shape in shapes.items()},
    )


def siglip() -> Case:
    """Image and text tower in one file."""
    shapes = _big_vision(2, 88, has_class_token=False)
    shapes |= {"MAPHead_0/probe": (1, 1, WIDTH), **_norm("MAPHead_0/LayerNorm_0")}
    shapes |= {**_attention("MAPHead_0/MultiHeadDotProductAttention_0"), **_mlp("MAPHead_0/MlpBlock_0", 88)}
    both = {f"params/img/{key}": shape for key, shape in shapes.items()}
    both |= {"params/txt/Embed_0/embedding": (11, WIDTH), "params/t": (1,), "params/b": (1,)}
    return _case(
        "big-vision-npz",
        {"depth": 2, "has_class_token": False, "pooling": "attention", "mlp_width": 88},
        _build(depth=2, num_classes=0, class_token=False, global_pool="map", mlp_ratio=88.5 / WIDTH),
        both,
    )


def scanned() -> Case:
    """All layers in one array, and the mean of the patches."""
    depth, mlp_width = 3, 40
    shapes = _embed("pos_embedding", PATCHES, has_class_token=False) | _norm("Transformer/encoder_norm")
    block = _block("Transformer/encoderblock", mlp_width, is_first_release=False)
    shapes |= {key: (depth, *shape) for key, shape in block.items()} | _linear("head", WIDTH, 4)
    return _case(
        "big-vision-scanned-npz",
        {"depth": 3, "num_classes": 4, "has_class_token": False, "pooling": "mean", "mlp_width": 40},
        _build(depth=3, num_classes=4, class_token=False, global_pool="avg", fc_norm=False, mlp_ratio=40.5 / WIDTH),
        shapes,
    )


CASES = {
    "vit_npz_augreg": augreg,
    "vit_npz_original": original,
    "vit_npz_big_vision": big_vision,
    "vit_npz_siglip": siglip,
    "vit_npz_scanned": scanned,
}
