"""Published Vision Transformers by name, without classes, at the image size of their usual release.

DeiT, MAE and DINO without more ado are the plain ViT of the same size. Where two projects compute different things from
the same params, each has its entry.
"""

from dataclasses import replace

from tljax.models.vit import VitConfig

_TINY = VitConfig(depth=12, width=192, num_heads=3, patch_size=16, image_size=224)
_SMALL = replace(_TINY, width=384, num_heads=6)
_MEDIUM = replace(_TINY, width=512, num_heads=8)
_BASE = replace(_TINY, width=768, num_heads=12)
_LARGE = replace(_TINY, depth=24, width=1024, num_heads=16)
_HUGE = replace(_TINY, depth=32, width=1280, num_heads=16, patch_size=14)


def _finetuned_mae(size: VitConfig) -> VitConfig:
    # mae/models_vit.py: global_pool=True, with which the published classifiers were trained.
    return replace(size, pooling="mean", is_norm_after_pooling=True)


def _distilled(size: VitConfig) -> VitConfig:
    return replace(size, has_distillation_token=True, pooling="cls_distillation")


def _deit3(size: VitConfig) -> VitConfig:
    # DeiT III (Touvron et al. 2022, arXiv:2204.07118).
    return replace(size, use_layer_scale=True, has_prefix_positions=False)


def _dinov2(size: VitConfig) -> VitConfig:
    return replace(size, patch_size=14, image_size=518, use_layer_scale=True, pooling="cls_mean")


def _with_registers(size: VitConfig) -> VitConfig:
    return replace(size, num_registers=4)


def _clip(size: VitConfig, patch_size: int, activation: str = "quick_gelu") -> VitConfig:
    return replace(
        size, patch_size=patch_size, activation=activation, has_patch_bias=False, has_embed_norm=True, norm_epsilon=1e-5
    )


def _siglip(size: VitConfig) -> VitConfig:
    return replace(size, has_class_token=False, activation="gelu_tanh", pooling="attention")


_DINOV2_GIANT = _dinov2(replace(_TINY, depth=40, width=1536, num_heads=24, mlp_width=4096, activation="swiglu"))
# Zhai et al. 2021, arXiv:2106.04560, table 2.
_GIANT = replace(_TINY, depth=40, width=1408, num_heads=16, mlp_width=6144)
_GIGANTIC = replace(_TINY, depth=48, width=1664, num_heads=16, mlp_width=8192)
# Alabdulmohsin et al. 2023, arXiv:2305.13035.
_SO400M = replace(_TINY, depth=27, width=1152, num_heads=16, mlp_width=4304)

ARCHITECTURES: dict[str, VitConfig] = {
    "vit_ti16": _TINY,
    "vit_s32": replace(_SMALL, patch_size=32),
    "vit_s16": _SMALL,
    "vit_s8": replace(_SMALL, patch_size=8),
    "vit_b32": replace(_BASE, patch_size=32),
    "vit_b16": _BASE,
    "vit_b8": replace(_BASE, patch_size=8),
    "vit_l32": replace(_LARGE, patch_size=32),
    "vit_l16": _LARGE,
    "vit_h14": _HUGE,
    "mae_b16_finetuned": _finetuned_mae(_BASE),
    "mae_l16_finetuned": _finetuned_mae(_LARGE),
    "mae_h14_finetuned": _finetuned_mae(_HUGE),
    "deit_ti16_distilled": _distilled(_TINY),
    "deit_s16_distilled": _distilled(_SMALL),
    "deit_b16_distilled": _distilled(_BASE),
    "deit3_s16": _deit3(_SMALL),
    "deit3_m16": _deit3(_MEDIUM),
    "deit3_b16": _deit3(_BASE),
    "deit3_l16": _deit3(_LARGE),
    "deit3_h14": _deit3(_HUGE),
    "dinov2_vits14": _dinov2(_SMALL),
    "dinov2_vitb14": _dinov2(_BASE),
    "dinov2_vitl14": _dinov2(_LARGE),
    "dinov2_vitg14": _DINOV2_GIANT,
    "dinov2_vits14_reg": _with_registers(_dinov2(_SMALL)),
    "dinov2_vitb14_reg": _with_registers(_dinov2(_BASE)),
    "dinov2_vitl14_reg": _with_registers(_dinov2(_LARGE)),
    "dinov2_vitg14_reg": _with_registers(_DINOV2_GIANT),
    "clip_vitb32": _clip(_BASE, 32),
    "clip_vitb16": _clip(_BASE, 16),
    "clip_vitl14": _clip(_LARGE, 14),
    "clip_vitl14_336": replace(_clip(_LARGE, 14), image_size=336),
    # LAION's: OpenCLIP computes the exact GELU.
    "clip_vitb32_gelu": _clip(_BASE, 32, "gelu"),
    "clip_vitb16_gelu": _clip(_BASE, 16, "gelu"),
    "clip_vitl14_gelu": _clip(_LARGE, 14, "gelu"),
    "clip_vith14_gelu": _clip(_HUGE, 14, "gelu"),
    "clip_vitg14_gelu": _clip(_GIANT, 14, "gelu"),
    "clip_vitbigg14_gelu": _clip(_GIGANTIC, 14, "gelu"),
    "siglip_vitb16": _siglip(_BASE),
    "siglip_vitl16": replace(_siglip(_LARGE), image_size=256),
    "siglip_so400m14": replace(_siglip(_SO400M), patch_size=14),
}
