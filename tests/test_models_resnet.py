"""ResNet: sizes against the published ones, a block against numpy, statistics in training mode, running in pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import synthetic
from tljax.models import ARCHITECTURES, Net
from tljax.models.resnet import ResNetConfig
from tljax.paths import stage_of

SMALL = ResNetConfig(depths=(2, 1), widths=(16, 32), stem_width=8, groups=2, width_per_group=64, num_classes=3)

# torchvision 0.29.2 with 1000 classes.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}


def small(**changes):
    """Return a small net with random statistics and a head that is not zero, and images of an odd size for it."""
    config = dataclasses.replace(SMALL, **changes)
    net = Net(config)
    rng = np.random.default_rng(0)
    params, stats = net.init(jax.random.key(0))
    if config.num_classes:
        params["head/linear/kernel"] = jnp.asarray(rng.normal(size=params["head/linear/kernel"].shape), jnp.float32)
    ranges = {"mean": (-0.5, 0.5), "var": (0.5, 2.0)}
    stats = {
        path: jnp.asarray(rng.uniform(*ranges[path.rsplit("/", 1)[1]], size=value.shape), jnp.float32)
        for path, value in stats.items()
    }
    return net, params, stats, jnp.asarray(synthetic.images(37, 50))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    net = Net(dataclasses.replace(ARCHITECTURES[name], num_classes=1000))
    assert sum(leaf.size for leaf in net.shapes.values()) == PUBLISHED[name]
    assert len(net.stat_shapes) == sum("norm" in path for path in net.shapes)


def test_every_published_resnet_is_measured():
    assert {name for name, config in ARCHITECTURES.items() if isinstance(config, ResNetConfig)} == set(PUBLISHED)


def test_stages():
    stages = ARCHITECTURES["resnet152"].stages
    assert stages[:3] == ("stem", "layer1_00", "layer1_01")
    assert stages[-2:] == ("layer4_02", "head")
    assert list(stages[1:-1]) == sorted(stages[1:-1])
    assert len(stages) == 1 + 3 + 8 + 36 + 3 + 1


@pytest.mark.parametrize("is_halved_early", [False, True])
def test_where_a_bottleneck_halves_the_map(is_halved_early):
    """Version 1.5 in the 3x3 convolution, version 1 in the 1x1 before it: a point of the input shows which."""
    net, params, stats, _ = small(is_halved_early=is_halved_early, groups=1)
    x = jnp.zeros((1, 9, 9, 16)).at[0, 3, 3].set(1.0)
    point, _ = net.apply(params, stats, x, start="layer2_00", stop="head")
    flat, _ = net.apply(params, stats, jnp.zeros_like(x), start="layer2_00", stop="head")
    assert point.shape == (1, 5, 5, 32)
    # Every second point, from 0 on, is all that version 1 sees.
    assert bool((point == flat).all()) == is_halved_early


def test_training_mode_normalises_by_the_batch_and_moves_the_statistics_by_a_tenth():
    """As torch's momentum of 0.1, with the biased variance."""
    net, params, stats, images = small()
    y, new = net.apply(params, stats, images, stop=1, train_from=0)
    mapped = jax.lax.conv_general_dilated(
        images, params["stem/conv/kernel"], (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )  # fmt: skip
    values = np.asarray(mapped, np.float64)
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
    for name, batch in (("mean", mean), ("var", variance)):
        path = f"stem/norm/{name}"
        np.testing.assert_allclose(new[path], 0.9 * np.asarray(stats[path]) + 0.1 * batch, rtol=1e-5)
    normalised = np.maximum((values - mean) / np.sqrt(variance + 1e-5), 0)
    padded = np.pad(normalised, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corner = padded[:, 2:5, 4:7].max(axis=(1, 2))  # what the pool sees at (1, 2)
    np.testing.assert_allclose(y[:, 1, 2], corner, atol=1e-5)


def test_statistics_of_stages_in_inference_mode_do_not_move_by_one_bit():
    net, params, stats, images = small()
    moved = lambda new: {stage_of(path) for path in stats if not np.array_equal(stats[path], new[path])}  # noqa: E731
    assert moved(net.apply(params, stats, images)[1]) == set()
    assert moved(net.apply(params, stats, images, train_from="layer1_01")[1]) == {"layer1_01", "layer2_00"}
    partly = net.apply(params, stats, images, train_from="layer1_01", frozen=("layer1_01",))[1]
    assert moved(partly) == {"layer2_00"}


@pytest.mark.parametrize("changes", [{}, {"is_bottleneck": False, "groups": 1}, {"is_first_halved": True}])
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


def test_the_head_without_classes_pools():
    net, params, stats, images = small(num_classes=0)
    features, _ = net.apply(params, stats, images)
    mapped, _ = net.apply(params, stats, images, stop="head")
    np.testing.assert_allclose(features, np.asarray(mapped).mean(axis=(1, 2)), rtol=1e-5)


def test_settings_that_make_no_net_are_refused():
    with pytest.raises(ValueError, match="want one positive number a layer each"):
        ResNetConfig(depths=(2, 2), widths=(16,))
    with pytest.raises(ValueError, match="are no multiples of 4"):
        ResNetConfig(depths=(1,), widths=(18,))
    with pytest.raises(ValueError, match="groups and width_per_group are those of bottlenecks"):
        ResNetConfig(depths=(1,), widths=(16,), is_bottleneck=False, groups=2)
