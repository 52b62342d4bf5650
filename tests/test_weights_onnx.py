"""What is left of a state dict in the ONNX files that torch exports (see tests/golden/make_onnx.py)."""

import numpy as np
import pytest

from tests.golden import make_onnx, synthetic
from tljax.models import Net, VitConfig
from tljax.models.resnet import ResNetConfig
from tljax.weights.read import read_checkpoint
from tljax.weights.recognise import layout_named, recognise_layout
from tljax.weights.rules import invert, map_arrays, strip_prefix
from tljax.weights.strict import check

VIT = VitConfig(
    depth=2, width=16, num_heads=2, patch_size=8, image_size=make_onnx.IMAGE_SIZE, num_classes=5, use_layer_scale=True
)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), widths=(4, 8, 12, 16), is_bottleneck=False, num_classes=5, in_channels=1)


def read(name):
    return read_checkpoint(make_onnx.FOLDER / f"{name}.onnx")


def loaded(checkpoint, layout, config):
    """Return a checkpoint under our paths, after the strict check."""
    net = Net(config)
    mapped = map_arrays(strip_prefix(checkpoint.arrays, layout), layout, config)
    report = check(mapped, layout, config, {**net.shapes, **net.stat_shapes})
    return {path: np.asarray(mapped.arrays[path].read()) for path in (*net.shapes, *net.stat_shapes)}, report


@pytest.mark.parametrize(
    ("name", "layout_name", "config"),
    [
        ("vit_torchscript", "timm-vit", VIT),
        ("vit_dynamo", "timm-vit", VIT),
        ("resnet_torchscript", "torchvision-resnet", RESNET),
        ("resnet_dynamo", "torchvision-resnet", RESNET),
    ],
)
def test_exports_give_the_state_dict_back_to_the_bit(name, layout_name, config):
    checkpoint = read(name)
    layout = recognise_layout(checkpoint)
    assert layout.name == layout_name
    params, report = loaded(checkpoint, layout, config)
    assert report.ignored == ()
    arrays = invert(params, layout, config)
    assert set(arrays) == set(checkpoint.arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, synthetic.array(key, array.shape), err_msg=key)


def test_a_class_token_computed_for_a_fixed_batch_has_lost_its_name():
    checkpoint = read("vit_dynamo_fixed_batch")
    with pytest.raises(ValueError, match="2 mismatches") as caught:
        loaded(checkpoint, recognise_layout(checkpoint), VIT)
    assert "key 'expand' (2, 1, 16) is not known" in str(caught.value)
    assert "missing 'embed/cls_token' (1, 1, 16); the checkpoint lacks key 'cls_token'" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet_torchscript_folded", "resnet_dynamo_folded"])
def test_statistics_that_are_in_the_convolutions_are_missed(name):
    checkpoint = read(name)
    kernel = checkpoint.arrays["layer1.0.conv1.weight"]
    assert not np.array_equal(kernel.read(), synthetic.array("layer1.0.conv1.weight", kernel.shape))
    with pytest.raises(
        ValueError, match="is in no known layout; its keys are conv1.*fold BatchNorm.*do_constant_folding=False"
    ):
        recognise_layout(checkpoint)
    with pytest.raises(ValueError, match="no checkpoint of layout 'torchvision-resnet'.*'bn1.running_mean'"):
        loaded(checkpoint, layout_named("torchvision-resnet"), RESNET)
