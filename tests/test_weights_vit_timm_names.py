import dataclasses
import json
import math

import pytest

from tests.golden import make_timm_names
from tljax.models import Net, VitConfig
from tljax.weights.tables.vit_timm import timm_architecture, timm_name
from tljax.weights.tables.vit_timm_names import TIMM_NAMES

TIMM = json.loads(make_timm_names.NAMES.read_text())
ACTIVATIONS = {"GELUnone": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
POOLINGS = {"token": "cls", "avg": "mean", "map": "attention"}
SMALL = VitConfig(depth=4, width=16, num_heads=2, patch_size=4, image_size=(8, 12), num_classes=3)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_names_stand_for_what_timm_builds(name):
    """timm_names.json says what timm does; see make_timm_names.py."""
    config, wanted = TIMM_NAMES[name], TIMM[name]
    net = Net(config)
    sizes = {
        stage: sum(math.prod(shape) for shape in net.stage_shapes(stage).values())
        for stage in net.stages
        if stage == "block_00" or not stage.startswith("block_")
    }
    is_distilled = wanted["class"] == "VisionTransformerDistilled"
    assert {
        "class": "VisionTransformerDistilled" if config.has_distillation_token else "VisionTransformer",
        "parameters": sum(sizes.values()) + (config.depth - 1) * sizes["block_00"],
        "depth": config.depth,
        "num_heads": config.num_heads,
        "image_size": list(config.image_shape[:2]),
        "patch_size": config.patch_size,
        "activation": config.activation,
        "norm_epsilon": config.norm_epsilon,
        "prefix_tokens": config.prefix_tokens,
        "positions": net.stage_shapes("embed")["embed/pos_embed"][1],
        "global_pool": config.pooling,
        "is_norm_after_pooling": config.is_norm_after_pooling,
    } == {
        **wanted,
        "activation": ACTIVATIONS[wanted["activation"]],
        "global_pool": "cls_distillation" if is_distilled else POOLINGS[wanted["global_pool"]],
    }


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_names_and_arguments_read_in_both_directions(name):
    config = dataclasses.replace(TIMM_NAMES[name], num_classes=7, in_channels=4)
    other, arguments = timm_name(config)
    assert set(arguments) == {"img_size", "num_classes", "in_chans"}
    assert timm_architecture(other, arguments) == config


@pytest.mark.parametrize(
    ("name", "arguments", "changes"),
    [
        ("vit_small_patch16_224", {}, {}),
        ("vit_small_patch16_224", {"img_size": [96, 128], "num_classes": 0}, {"image_size": (96, 128)}),
        ("vit_small_patch16_224", {"patch_size": [32, 32], "in_chans": 1}, {"patch_size": 32, "in_channels": 1}),
        ("vit_small_patch16_224", {"mlp_ratio": 4.0, "drop_path_rate": 0.1, "init_values": None}, {}),
        ("vit_small_patch16_224", {"embed_dim": 192, "mlp_ratio": 3}, {"width": 192, "mlp_width": 576}),
        ("vit_small_patch16_224", {"depth": 3, "num_heads": 2}, {"depth": 3, "num_heads": 2}),
        ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
        ("vit_small_patch16_224", {"global_pool": "avg"}, {"pooling": "mean", "is_norm_after_pooling": True}),
        ("vit_small_patch16_224", {"global_pool": "avg", "fc_norm": False}, {"pooling": "mean"}),
        ("vit_small_patch16_224", {"fc_norm": True}, {"is_norm_after_pooling": True}),
        ("vit_small_patch16_224", {"pre_norm": True}, {"has_embed_norm": True, "has_patch_bias": False}),
        ("deit3_small_patch16_224", {"init_values": 0.0}, {"use_layer_scale": False}),
        (
            "vit_small_patch16_224",
            {"global_pool": "map", "pool_include_prefix": True, "reg_tokens": 2, "no_embed_class": True},
            {"pooling": "attention", "num_registers": 2, "has_prefix_positions": False},
        ),
        ("vit_base_patch16_siglip_gap_224", {}, {}),
        (
            "vit_base_patch16_siglip_224",
            {"global_pool": "avg"},
            {"pooling": "mean", "is_norm_after_pooling": True},
        ),
        ("vit_giant_patch14_dinov2", {"embed_dim": 768, "mlp_ratio": 4}, {"width": 768, "mlp_width": 1536}),
    ],
)
def test_arguments_change_the_net(name, arguments, changes):
    assert timm_architecture(name, arguments) == dataclasses.replace(TIMM_NAMES[name], **changes)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_smal_patch16_224", {}, "'vit_smal_patch16_224' is not known .did you mean 'vit_small_patch16_224'"),
        ("vit_small_patch16_224", {"qkv_bias": False}, "qkv_bias=False: ours are built with True"),
        ("vit_small_patch16_224", {"num_class": 3}, "argument 'num_class' is not known .did you mean 'num_classes'"),
        ("vit_small_patch16_224", {"global_pool": "max"}, "global_pool='max': this net can have 'token', 'avg', 'map'"),
        ("deit_base_distilled_patch16_224", {"global_pool": "avg"}, "global_pool='avg': this net can have 'token'"),
        ("vit_small_patch16_224", {"act_layer": "relu"}, "act_layer='relu': this net can have 'gelu'"),
        ("vit_giant_patch14_dinov2", {"act_layer": "gelu"}, "act_layer='gelu': this net can have 'silu'"),
        ("vit_small_patch16_224", {"reg_tokens": 4}, "reg_tokens without no_embed_class"),
        ("vit_so400m_patch14_siglip_224", {"embed_dim": 576}, "embed_dim without mlp_ratio"),
        (
            "vit_small_patch16_224",
            {"global_pool": "map"},
            "pool_include_prefix=False: our pooling 'attention' has True",
        ),
        (
            "vit_small_patch16_224",
            {"global_pool": "avg", "pool_include_prefix": True},
            "pool_include_prefix=True: our pooling 'mean' has False",
        ),
        ("vit_small_patch16_224", {"img_size": 230}, "image_size 230 is not a multiple of patch_size 16"),
    ],
)
def test_names_and_arguments_that_are_no_net_of_ours_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm_architecture(name, arguments)


def test_all_refused_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)qkv_bias.*'depht' is not known"):
        timm_architecture("vit_small_patch16_224", {"qkv_bias": False, "depht": 3})


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, activation="quick_gelu", norm_epsilon=1e-5, mlp_width=40),
        dataclasses.replace(SMALL, has_embed_norm=True, has_patch_bias=False, use_layer_scale=True),
        dataclasses.replace(SMALL, num_registers=3, has_prefix_positions=False, pooling="attention"),
        dataclasses.replace(SMALL, pooling="mean", is_norm_after_pooling=True, in_channels=2),
        dataclasses.replace(SMALL, has_class_token=False, pooling="mean"),
        dataclasses.replace(SMALL, is_norm_after_pooling=True),
        dataclasses.replace(SMALL, activation="swiglu", mlp_width=23, use_layer_scale=True),
        dataclasses.replace(SMALL, has_distillation_token=True, pooling="cls_distillation", depth=3),
    ],
)
def test_any_net_that_timm_can_build_has_a_name_and_arguments(config):
    assert timm_architecture(*timm_name(config)) == config
    assert json.loads(json.dumps(timm_name(config)[1])).keys() == timm_name(config)[1].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_patch_bias": False}, "a bias of the patches exactly where"),
        ({"representation_width": 8}, "no representation_width: drop the stage 'pre_logits'"),
        ({"has_head_bias": False}, "a classifier with a bias: set has_head_bias"),
        ({"pooling": "cls_mean"}, "no pooling 'cls_mean'"),
        ({"num_registers": 2}, "no class token with a position beside registers without"),
        ({"norm_epsilon": 1e-12}, "no net with activation 'gelu', norm_epsilon 1e-12"),
        ({"activation": "swiglu", "norm_epsilon": 1e-5}, "no net with activation 'swiglu', norm_epsilon 1e-05"),
        ({"has_distillation_token": True}, "pooling 'cls_distillation' wherever there is a distillation token"),
        (
            {
                "has_distillation_token": True,
                "pooling": "cls_distillation",
                "num_registers": 1,
                "has_prefix_positions": False,
            },
            "neither registers nor tokens without positions beside a distillation token",
        ),
    ],
)
def test_nets_that_timm_cannot_build_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        timm_name(dataclasses.replace(SMALL, **changes))
