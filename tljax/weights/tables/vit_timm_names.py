"""timm's names of Vision Transformers, as literal architectures without classes.

Source: timm 1.0.31, timm/models/vision_transformer.py and deit.py, with the image size of the default weights.
"""

from dataclasses import replace
from typing import Any

from tljax.models import VitConfig
from tljax.models.vit_architectures import ARCHITECTURES


def _like(name: str, **changes: Any) -> VitConfig:
    return replace(ARCHITECTURES[name], **changes)


def _dinov2(name: str) -> VitConfig:
    # timm's net ends with the class token. With registers no prefix token has a position.
    known = ARCHITECTURES[name]
    return replace(known, pooling="cls", has_prefix_positions=not known.num_registers)


def _clip(size: str, patch_size: int, image_size: int = 224, **changes: Any) -> VitConfig:
    return _like(f"clip_vit{size}_gelu", patch_size=patch_size, image_size=image_size, **changes)


def _siglip(size: str, patch_size: int, image_size: int, *, is_tanh: bool = False, **changes: Any) -> VitConfig:
    # SigLIP computes the tanh approximation; timm's first entries compute the exact GELU.
    activation = "gelu_tanh" if is_tanh else "gelu"
    return _like(f"siglip_{size}", patch_size=patch_size, image_size=image_size, activation=activation, **changes)


def _average(size: str, patch_size: int, image_size: int, *, is_tanh: bool = False, **changes: Any) -> VitConfig:
    return _siglip(size, patch_size, image_size, is_tanh=is_tanh, pooling="mean", **changes)


def _searched(size: tuple[int, int, int], num_registers: int, image_size: int = 256, **changes: Any) -> VitConfig:
    # timm's own "Searching for Better ViT Baselines": width, depth and heads, registers, no class token.
    width, depth, num_heads = size
    return _like(
        "deit3_b16", width=width, depth=depth, num_heads=num_heads, num_registers=num_registers, image_size=image_size,
        has_class_token=False, pooling="mean", is_norm_after_pooling=True, **changes,
    )  # fmt: skip


def _jepa(name: str, patch_size: int, image_size: int, **changes: Any) -> VitConfig:
    return _like(
        name, patch_size=patch_size, image_size=image_size, has_class_token=False, pooling="mean", **changes
    )  # fmt: skip


def _tips(name: str, **changes: Any) -> VitConfig:
    return replace(_dinov2(name), num_registers=1, has_prefix_positions=False, image_size=448, **changes)


_WEE, _LITTLE, _MEDIUM, _DEEPER, _BETWIXT = (256, 14, 4), (320, 14, 5), (512, 12, 8), (512, 20, 8), (640, 12, 10)
_GIANT_OPT = {"depth": 40, "width": 1536, "mlp_width": 6144}

TIMM_NAMES: dict[str, VitConfig] = {
    "vit_tiny_patch16_224": _like("vit_ti16"),
    "vit_tiny_patch16_384": _like("vit_ti16", image_size=384),
    "vit_small_patch32_224": _like("vit_s32"),
    "vit_small_patch32_384": _like("vit_s32", image_size=384),
    "vit_small_patch16_224": _like("vit_s16"),
    "vit_small_patch16_384": _like("vit_s16", image_size=384),
    "vit_small_patch8_224": _like("vit_s8"),
    "vit_base_patch32_224": _like("vit_b32"),
    "vit_base_patch32_384": _like("vit_b32", image_size=384),
    "vit_base_patch16_224": _like("vit_b16"),
    "vit_base_patch16_384": _like("vit_b16", image_size=384),
    "vit_base_patch8_224": _like("vit_b8"),
    "vit_large_patch32_224": _like("vit_l32"),
    "vit_large_patch32_384": _like("vit_l32", image_size=384),
    "vit_large_patch16_224": _like("vit_l16"),
    "vit_large_patch16_384": _like("vit_l16", image_size=384),
    "vit_large_patch14_224": _like("vit_l16", patch_size=14),
    "vit_huge_patch14_224": _like("vit_h14"),
    "deit_tiny_patch16_224": _like("vit_ti16"),
    "deit_small_patch16_224": _like("vit_s16"),
    "deit_base_patch16_224": _like("vit_b16"),
    "deit_base_patch16_384": _like("vit_b16", image_size=384),
    "deit_tiny_distilled_patch16_224": _like("deit_ti16_distilled"),
    "deit_small_distilled_patch16_224": _like("deit_s16_distilled"),
    "deit_base_distilled_patch16_224": _like("deit_b16_distilled"),
    "deit_base_distilled_patch16_384": _like("deit_b16_distilled", image_size=384),
    "deit3_small_patch16_224": _like("deit3_s16"),
    "deit3_small_patch16_384": _like("deit3_s16", image_size=384),
    "deit3_medium_patch16_224": _like("deit3_m16"),
    "deit3_base_patch16_224": _like("deit3_b16"),
    "deit3_base_patch16_384": _like("deit3_b16", image_size=384),
    "deit3_large_patch16_224": _like("deit3_l16"),
    "deit3_large_patch16_384": _like("deit3_l16", image_size=384),
    "deit3_huge_patch14_224": _like("deit3_h14"),
    "vit_small_patch14_dinov2": _dinov2("dinov2_vits14"),
    "vit_base_patch14_dinov2": _dinov2("dinov2_vitb14"),
    "vit_large_patch14_dinov2": _dinov2("dinov2_vitl14"),
    "vit_giant_patch14_dinov2": _dinov2("dinov2_vitg14"),
    "vit_small_patch14_reg4_dinov2": _dinov2("dinov2_vits14_reg"),
    "vit_base_patch14_reg4_dinov2": _dinov2("dinov2_vitb14_reg"),
    "vit_large_patch14_reg4_dinov2": _dinov2("dinov2_vitl14_reg"),
    "vit_giant_patch14_reg4_dinov2": _dinov2("dinov2_vitg14_reg"),
    "vit_base_patch14_reg1_tipsv2": _tips("dinov2_vitb14_reg"),
    "vit_large_patch14_reg1_tipsv2": _tips("dinov2_vitl14_reg"),
    "vit_so400m_patch14_reg1_tipsv2": _tips("dinov2_vitl14_reg", depth=27, width=1152, mlp_width=4304),
    "vit_giant_patch14_reg1_tipsv2": _tips("dinov2_vitg14_reg"),
    "vit_wee_patch16_reg1_gap_256": _searched(_WEE, 1, mlp_width=1280),
    "vit_little_patch16_reg1_gap_256": _searched(_LITTLE, 1, mlp_width=1792),
    "vit_little_patch16_reg4_gap_256": _searched(_LITTLE, 4, mlp_width=1792),
    "vit_medium_patch16_reg1_gap_256": _searched(_MEDIUM, 1),
    "vit_medium_patch16_reg4_gap_256": _searched(_MEDIUM, 4),
    "vit_mediumd_patch16_reg4_gap_256": _searched(_DEEPER, 4),
    "vit_mediumd_patch16_reg4_gap_384": _searched(_DEEPER, 4, 384),
    "vit_betwixt_patch16_reg1_gap_256": _searched(_BETWIXT, 1),
    "vit_betwixt_patch16_reg4_gap_256": _searched(_BETWIXT, 4),
    "vit_betwixt_patch16_reg4_gap_384": _searched(_BETWIXT, 4, 384),
    "vit_base_patch16_reg4_gap_256": _searched((768, 12, 12), 4, use_layer_scale=False),
    "vit_huge_patch14_gap_224": _jepa("vit_h14", 14, 224),
    "vit_huge_patch16_gap_448": _jepa("vit_h14", 16, 448),
    "vit_giant_patch16_gap_224": _jepa("vit_h14", 16, 224, depth=40, width=1408, mlp_width=6144),
    "flexivit_small": _like("vit_s16", image_size=240, has_prefix_positions=False),
    "flexivit_base": _like("vit_b16", image_size=240, has_prefix_positions=False),
    "flexivit_large": _like("vit_l16", image_size=240, has_prefix_positions=False),
    "eva_large_patch14_196": _like("mae_l16_finetuned", patch_size=14, image_size=196),
    "eva_large_patch14_336": _like("mae_l16_finetuned", patch_size=14, image_size=336),
    "test_vit": _like("vit_ti16", depth=6, width=64, num_heads=2, mlp_width=192, image_size=160),
    "vit_xsmall_patch16_clip_224": _clip("b16", 16, depth=10, width=256, num_heads=4),
    "vit_medium_patch32_clip_224": _clip("b32", 32, width=512, num_heads=8),
    "vit_medium_patch16_clip_224": _clip("b16", 16, width=512, num_heads=8),
    "vit_betwixt_patch32_clip_224": _clip("b32", 32, width=640, num_heads=10),
    "vit_base_patch32_clip_224": _clip("b32", 32),
    "vit_base_patch32_clip_256": _clip("b32", 32, 256),
    "vit_base_patch32_clip_384": _clip("b32", 32, 384),
    "vit_base_patch32_clip_448": _clip("b32", 32, 448),
    "vit_base_patch16_clip_224": _clip("b16", 16),
    "vit_base_patch16_clip_384": _clip("b16", 16, 384),
    "vit_base_patch16_plus_clip_240": _clip("b16", 16, 240, width=896, num_heads=14),
    "vit_large_patch14_clip_224": _clip("l14", 14),
    "vit_large_patch14_clip_336": _clip("l14", 14, 336),
    "vit_huge_patch14_clip_224": _clip("h14", 14),
    "vit_huge_patch14_clip_336": _clip("h14", 14, 336),
    "vit_huge_patch14_clip_378": _clip("h14", 14, 378),
    "vit_giant_patch14_clip_224": _clip("g14", 14),
    "vit_gigantic_patch14_clip_224": _clip("bigg14", 14),
    "vit_gigantic_patch14_clip_378": _clip("bigg14", 14, 378),
    "vit_base_patch32_clip_quickgelu_224": _like("clip_vitb32"),
    "vit_base_patch16_clip_quickgelu_224": _like("clip_vitb16"),
    "vit_large_patch14_clip_quickgelu_224": _like("clip_vitl14"),
    "vit_large_patch14_clip_quickgelu_336": _like("clip_vitl14_336"),
    "vit_huge_patch14_clip_quickgelu_224": _clip("h14", 14, activation="quick_gelu"),
    "vit_huge_patch14_clip_quickgelu_378": _clip("h14", 14, 378, activation="quick_gelu"),
    "vit_gigantic_patch14_clip_quickgelu_224": _clip("bigg14", 14, activation="quick_gelu"),
    "vit_base_patch32_siglip_256": _siglip("vitb16", 32, 256, is_tanh=True),
    "vit_base_patch16_siglip_224": _siglip("vitb16", 16, 224),
    "vit_base_patch16_siglip_256": _siglip("vitb16", 16, 256),
    "vit_base_patch16_siglip_384": _siglip("vitb16", 16, 384),
    "vit_base_patch16_siglip_512": _siglip("vitb16", 16, 512),
    "vit_large_patch16_siglip_256": _siglip("vitl16", 16, 256),
    "vit_large_patch16_siglip_384": _siglip("vitl16", 16, 384),
    "vit_large_patch16_siglip_512": _siglip("vitl16", 16, 512, is_tanh=True),
    "vit_so400m_patch14_siglip_224": _siglip("so400m14", 14, 224),
    "vit_so400m_patch14_siglip_378": _siglip("so400m14", 14, 378),
    # Of its images of 384 pixels the patches cover the first 378 rows and columns.
    "vit_so400m_patch14_siglip_384": _siglip("so400m14", 14, 384, has_partial_patches=True),
    "vit_so400m_patch16_siglip_256": _siglip("so400m14", 16, 256, is_tanh=True),
    "vit_so400m_patch16_siglip_384": _siglip("so400m14", 16, 384, is_tanh=True),
    "vit_so400m_patch16_siglip_512": _siglip("so400m14", 16, 512, is_tanh=True),
    "vit_giantopt_patch16_siglip_256": _siglip("vitl16", 16, 256, is_tanh=True, **_GIANT_OPT),
    "vit_giantopt_patch16_siglip_384": _siglip("vitl16", 16, 384, is_tanh=True, **_GIANT_OPT),
    "vit_base_patch32_siglip_gap_256": _average("vitb16", 32, 256, is_tanh=True),
    "vit_base_patch16_siglip_gap_224": _average("vitb16", 16, 224),
    "vit_base_patch16_siglip_gap_256": _average("vitb16", 16, 256),
    "vit_base_patch16_siglip_gap_384": _average("vitb16", 16, 384),
    "vit_base_patch16_siglip_gap_512": _average("vitb16", 16, 512),
    "vit_large_patch16_siglip_gap_256": _average("vitl16", 16, 256),
    "vit_large_patch16_siglip_gap_384": _average("vitl16", 16, 384),
    "vit_large_patch16_siglip_gap_512": _average("vitl16", 16, 512, is_tanh=True),
    "vit_so400m_patch14_siglip_gap_224": _average("so400m14", 14, 224),
    "vit_so400m_patch14_siglip_gap_378": _average("so400m14", 14, 378),
    "vit_so400m_patch14_siglip_gap_384": _average("so400m14", 14, 384, has_partial_patches=True),
    "vit_so400m_patch14_siglip_gap_448": _average("so400m14", 14, 448),
    "vit_so400m_patch14_siglip_gap_896": _average("so400m14", 14, 896),
    "vit_so400m_patch16_siglip_gap_256": _average("so400m14", 16, 256, is_tanh=True),
    "vit_so400m_patch16_siglip_gap_384": _average("so400m14", 16, 384, is_tanh=True),
    "vit_so400m_patch16_siglip_gap_512": _average("so400m14", 16, 512, is_tanh=True),
    "vit_giantopt_patch16_siglip_gap_256": _average("vitl16", 16, 256, is_tanh=True, **_GIANT_OPT),
    "vit_giantopt_patch16_siglip_gap_384": _average("vitl16", 16, 384, is_tanh=True, **_GIANT_OPT),
}
