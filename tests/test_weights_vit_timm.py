import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tests.golden import synthetic
from tljax.models import Net, VitConfig
from tljax.weights.recognise import recognise_layout
from tljax.weights.rules import invert, map_arrays, strip_prefix
from tljax.weights.stored import Checkpoint, stored
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS, vit_npz, vit_timm

SMALL = VitConfig(depth=4, width=16, num_heads=2, patch_size=4, image_size=(8, 12), num_classes=3)
DINOV2 = dataclasses.replace(SMALL, use_layer_scale=True, num_registers=2, num_classes=0, pooling="cls_mean")
BIG_VISION = dataclasses.replace(SMALL, has_class_token=False, pooling="attention")
# A net that each layout can hold.
NETS = {
    "timm-vit": SMALL,
    "meta-deit3": dataclasses.replace(SMALL, use_layer_scale=True, has_prefix_positions=False),
    "meta-mae": dataclasses.replace(SMALL, num_classes=0),
    "meta-dinov2": DINOV2,
    "meta-dinov2-chunked": DINOV2,
    "augreg-npz": SMALL,
    "big-vision-npz": BIG_VISION,
    "big-vision-scanned-npz": BIG_VISION,
}


def published(layout, config):
    """Return synthetic arrays under the keys of a layout, and what its files always hold besides."""
    shapes = {path: leaf.shape for path, leaf in Net(config).shapes.items()}
    arrays = invert(synthetic.arrays(shapes), layout, config)
    missing = [key for key in layout.anchors if key not in arrays]
    return {**arrays, **{key: np.zeros((1, 16), np.float32) for key in missing}}


def loaded(arrays, layout, config):
    """Check arrays with their wrapping against a net; return the report."""
    mapped = map_arrays(strip_prefix({key: stored(value) for key, value in arrays.items()}, layout), layout, config)
    net = Net(config)
    return check(mapped, layout, config, {**net.shapes, **net.stat_shapes})


def recognised(arrays):
    held = {key: stored(value) for key, value in arrays.items()}
    return recognise_layout(Checkpoint(path=Path("file"), format="torch", arrays=held, settings={})).name


def zeros(*keys):
    return {key: np.zeros((2,), np.float32) for key in keys}


def prefixed(prefix, arrays):
    return {prefix + key: value for key, value in arrays.items()}


@pytest.mark.parametrize("name", NETS)
def test_a_file_fits_one_layout_only(name):
    assert recognised(published(LAYOUTS[name], NETS[name])) == name


@pytest.mark.parametrize("prefix", vit_timm.TIMM.prefixes)
def test_prefixes(prefix):
    arrays = prefixed(prefix, published(vit_timm.TIMM, SMALL))
    assert recognised(arrays) == "timm-vit"
    assert loaded(arrays, vit_timm.TIMM, SMALL).ignored == ()


def test_deit_and_the_state_of_its_training():
    config = dataclasses.replace(SMALL, has_distillation_token=True, pooling="cls_distillation")
    extra = zeros("optimizer.state.0.exp_avg", "scaler.scale", "model_ema.blocks.0.norm1.weight", "lr_scheduler.t")
    arrays = {**prefixed("model.", published(vit_timm.TIMM, config)), **extra}
    assert recognised(arrays) == "timm-vit"
    report = loaded(arrays, vit_timm.TIMM, config)
    assert set(report.ignored) == set(extra)
    assert "head_dist.weight" in report.used


def test_dino_gives_the_backbone_of_its_teacher():
    config = dataclasses.replace(SMALL, num_classes=0)
    teacher = published(vit_timm.TIMM, config)
    student = prefixed("student.module.backbone.", {key: value + 1 for key, value in teacher.items()})
    extra = zeros("teacher.head.mlp.0.weight", "student.module.head.last_layer.weight_g", "dino_loss.center")
    arrays = {**student, **prefixed("teacher.backbone.", teacher), **extra}
    assert recognised(arrays) == "timm-vit"
    report = loaded(arrays, vit_timm.TIMM, config)
    assert set(report.ignored) == {*student, *extra}
    assert set(report.used) == set(teacher)


def test_mae_leaves_its_decoder_behind():
    config = dataclasses.replace(SMALL, num_classes=0)
    extra = zeros("model.decoder_blocks.0.norm1.weight", "model.decoder_pos_embed", "model.decoder_pred.bias")
    arrays = {**prefixed("model.", published(vit_timm.MAE, config)), **extra}
    assert recognised(arrays) == "meta-mae"
    report = loaded(arrays, vit_timm.MAE, config)
    decoder = {"decoder_embed.weight", "mask_token", *(key.removeprefix("model.") for key in extra)}
    assert set(report.ignored) == decoder
    finetuned = dataclasses.replace(SMALL, pooling="mean", is_norm_after_pooling=True)
    arrays = prefixed("model.", published(vit_timm.TIMM, finetuned))
    assert recognised(arrays) == "timm-vit"
    assert {"fc_norm.weight", "fc_norm.bias"} <= set(loaded(arrays, vit_timm.TIMM, finetuned).used)
    with pytest.raises(ValueError, match="key 'fc_norm.weight'.*is not known in layout 'timm-vit'"):
        loaded(arrays, vit_timm.TIMM, SMALL)


def test_dinov2_with_the_linear_head_of_the_hub():
    config = dataclasses.replace(DINOV2, num_classes=5)
    plain = published(vit_timm.META_DINOV2, config)
    head = {key: plain.pop(key) for key in ("linear_head.weight", "linear_head.bias")}
    assert head["linear_head.weight"].shape == (5, 32)
    arrays = {**prefixed("backbone.", plain), **head}
    assert recognised(arrays) == "meta-dinov2"
    assert loaded(arrays, vit_timm.META_DINOV2, config).ignored == ("mask_token",)


def test_image_towers_of_openclip_come_without_the_text():
    config = dataclasses.replace(SMALL, has_class_token=False, pooling="attention", num_classes=0)
    extra = zeros("text.transformer.resblocks.0.ln_1.weight", "logit_scale", "logit_bias")
    arrays = {**prefixed("visual.trunk.", published(vit_timm.TIMM, config)), **extra}
    assert recognised(arrays) == "timm-vit"
    assert set(loaded(arrays, vit_timm.TIMM, config).ignored) == set(extra)


def test_chunks_follow_from_the_depth():
    config = dataclasses.replace(DINOV2, depth=8)
    keys = published(vit_timm.META_DINOV2_CHUNKED, config)
    pairs = {found.groups() for key in keys if (found := re.match(r"blocks\.(\d)\.(\d)\.", key))}
    assert pairs == {(str(layer // 2), str(layer)) for layer in range(8)}


def test_siglip_comes_without_the_text_and_the_optimiser():
    layout = vit_npz.BIG_VISION
    extra = zeros("params/txt/Embed_0/embedding", "params/t", "params/b", "opt/0/mu")
    arrays = {**prefixed("params/img/", published(layout, BIG_VISION)), **extra}
    assert recognised(arrays) == "big-vision-npz"
    assert set(loaded(arrays, layout, BIG_VISION).ignored) == set(extra)


def test_heads_of_another_number_are_seen():
    """The kernels of Google's files name the heads; those of other layouts have any number."""
    arrays = published(vit_npz.AUGREG, SMALL)
    with pytest.raises(ValueError, match=r"query/kernel' has shape \(16, 2, 8\), wanted axes 'i heads e.*'heads': 4"):
        loaded(arrays, vit_npz.AUGREG, dataclasses.replace(SMALL, num_heads=4))


def test_google_publishes_what_its_code_computes():
    assert vit_npz.layout_for(SMALL).name == "augreg-npz"
    assert vit_npz.layout_for(dataclasses.replace(SMALL, has_prefix_positions=False)).name == "big-vision-npz"
    assert vit_npz.layout_for(BIG_VISION).name == "big-vision-npz"
    config = dataclasses.replace(SMALL, use_layer_scale=True, num_registers=2, pooling="mean", activation="quick_gelu")
    with pytest.raises(
        ValueError, match="(?s)no activation='quick_gelu'.*num_registers=2.*layer_scale.*pooling='mean'"
    ):
        vit_npz.layout_for(config)
