import math

import pytest

from tljax.models import ARCHITECTURES, Net, VitConfig
from tljax.models.vit_architectures import ARCHITECTURES as VITS

# Parameters without classes. ViT, DeiT and DeiT III: timm 1.0.31. DINOv2 (without the mask token), CLIP and SigLIP
# image towers: transformers 5.23, Dinov2Model, Dinov2WithRegistersModel, CLIPVisionModel and SiglipVisionModel.
PARAMETERS = {
    "vit_ti16": 5_524_416,
    "vit_s32": 22_493_952,
    "vit_s16": 21_665_664,
    "vit_s8": 21_670_272,
    "vit_b32": 87_455_232,
    "vit_b16": 85_798_656,
    "vit_b8": 85_807_872,
    "vit_l32": 305_510_400,
    "vit_l16": 303_301_632,
    "vit_h14": 630_764_800,
    "mae_b16_finetuned": 85_798_656,
    "mae_l16_finetuned": 303_301_632,
    "mae_h14_finetuned": 630_764_800,
    "deit_ti16_distilled": 5_524_800,
    "deit_s16_distilled": 21_666_432,
    "deit_b16_distilled": 85_800_192,
    "deit3_s16": 21_674_496,
    "deit3_m16": 38_336_512,
    "deit3_b16": 85_816_320,
    "deit3_l16": 303_349_760,
    "deit3_h14": 630_845_440,
    "dinov2_vits14": 22_056_192,
    "dinov2_vitb14": 86_579_712,
    "dinov2_vitl14": 304_367_616,
    "dinov2_vitg14": 1_136_479_232,
    "dinov2_vits14_reg": 22_057_728,
    "dinov2_vitb14_reg": 86_582_784,
    "dinov2_vitl14_reg": 304_371_712,
    "dinov2_vitg14_reg": 1_136_485_376,
    "clip_vitb32": 87_456_000,
    "clip_vitb16": 85_799_424,
    "clip_vitl14": 303_179_776,
    "clip_vitl14_336": 303_507_456,
    "clip_vitb32_gelu": 87_456_000,
    "clip_vitb16_gelu": 85_799_424,
    "clip_vitl14_gelu": 303_179_776,
    "clip_vith14_gelu": 630_766_080,
    "clip_vitg14_gelu": 1_011_203_840,
    "clip_vitbigg14_gelu": 1_842_777_344,
    "siglip_vitb16": 92_884_224,
    "siglip_vitl16": 315_956_224,
    "siglip_so400m14": 427_680_704,
}


def num_parameters(config):
    """Count one block and multiply: the blocks of a ViT are alike."""
    net = Net(config)
    counts = {
        stage: sum(math.prod(shape) for shape in net.stage_shapes(stage).values())
        for stage in net.stages
        if stage == "block_00" or not stage.startswith("block_")
    }
    return sum(counts.values()) + (config.depth - 1) * counts["block_00"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_numbers_of_parameters(name):
    assert num_parameters(VITS[name]) == PARAMETERS[name]


def test_every_entry_is_counted_without_classes_and_in_the_registry():
    assert set(PARAMETERS) == set(VITS)
    assert set(VITS) <= set(ARCHITECTURES)
    assert {config.num_classes for config in VITS.values()} == {0}
    assert len(set(VITS.values())) == len(VITS)


def test_entries_of_the_first_release_mean_the_same():
    dinov2 = {"patch_size": 14, "image_size": 518, "use_layer_scale": True, "pooling": "cls_mean"}
    assert VITS["vit_s16"] == VitConfig(depth=12, width=384, num_heads=6, patch_size=16, image_size=224)
    assert VITS["dinov2_vits14"] == VitConfig(depth=12, width=384, num_heads=6, **dinov2)
    assert VITS["dinov2_vitb14"] == VitConfig(depth=12, width=768, num_heads=12, **dinov2)
    assert VITS["dinov2_vitl14"] == VitConfig(depth=24, width=1024, num_heads=16, **dinov2)
