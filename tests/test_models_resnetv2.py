"""BiT's ResNet v2: its layers against numpy, its sizes against the published ones, its configs in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden import synthetic
from tests.golden.compare import opened, read
from tljax.models import ARCHITECTURES, Net
from tljax.models.resnetv2 import GroupNormRelu, ResNetV2Config, StandardizedConv, Stem
from tljax.paths import stage_of
from tljax.weights.tables import resnetv2

SMALL = ResNetV2Config(depths=(2, 1), widths=(32, 64), stem_width=16, num_groups=8, num_classes=3)

# timm 1.0.31, resnetv2_*_bit: without a classifier, with 1000 classes, with the 21843 of ImageNet-21k.
PUBLISHED = {
    "bit_r50x1": (23_500_352, 25_549_352, 68_256_659),
    "bit_r50x3": (211_174_080, 217_319_080, 345_399_315),
    "bit_r101x1": (42_492_480, 44_541_480, 87_248_787),
    "bit_r101x3": (381_789_888, 387_934_888, 516_015_123),
    "bit_r152x2": (232_238_208, 236_335_208, 321_728_979),
    "bit_r152x4": (928_340_224, 936_533_224, 1_107_299_923),
}


def draw(*shape, scale=1.0):
    return np.random.default_rng(list(shape)).normal(0.3, scale, shape).astype(np.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    for num_classes, wanted in zip((0, 1000, 21843), PUBLISHED[name], strict=True):
        net = Net(dataclasses.replace(ARCHITECTURES[name], num_classes=num_classes))
        assert sum(leaf.size for leaf in net.shapes.values()) == wanted
        assert not net.stat_shapes


def test_stages():
    stages = ARCHITECTURES["bit_r152x2"].stages
    assert stages[:3] == ("stem", "layer1_00", "layer1_01")
    assert stages[-4:] == ("layer4_01", "layer4_02", "norm", "head")
    assert list(stages[1:-2]) == sorted(stages[1:-2])
    assert len(stages) == 3 + 3 + 8 + 36 + 3


@pytest.mark.parametrize("epsilon", [1e-10, 1e-8])
def test_kernels_are_standardised(epsilon):
    """A kernel so small that the two epsilons in use differ by more than the tolerance."""
    config = dataclasses.replace(SMALL, weight_epsilon=epsilon)
    conv = StandardizedConv(config, (1, 5, 4), 1, nnx.Rngs(0))
    conv.kernel[...] = jnp.asarray(draw(1, 1, 5, 4) * 1e-4)
    wide = np.asarray(conv.kernel[...], np.float64)
    wanted = np.empty_like(wide)
    for channel in range(4):
        weights = wide[..., channel]
        mean = weights.sum() / 5
        variance = ((weights - mean) ** 2).sum() / 5
        wanted[..., channel] = (weights - mean) / np.sqrt(variance + epsilon)
    x = draw(2, 3, 4, 5)
    np.testing.assert_allclose(conv(jnp.asarray(x)), x.astype(np.float64) @ wanted[0, 0], atol=1e-5)


def test_group_norm():
    width, groups = 24, 8
    norm = GroupNormRelu(dataclasses.replace(SMALL, norm_epsilon=1e-2), width)
    norm.scale[...], norm.bias[...] = jnp.asarray(draw(width)), jnp.asarray(draw(width, scale=0.5))
    x = draw(2, 3, 5, width)
    wanted = np.empty(x.shape)
    for image in range(2):
        for group in range(groups):
            channels = slice(3 * group, 3 * group + 3)
            part = x[image, :, :, channels].astype(np.float64)
            normalised = (part - part.mean()) / np.sqrt(part.var() + 1e-2)
            wanted[image, :, :, channels] = normalised * draw(width)[channels] + draw(width, scale=0.5)[channels]
    np.testing.assert_allclose(norm(jnp.asarray(x)), np.maximum(wanted, 0), atol=1e-5)


def test_zeros_stand_around_the_map_that_the_stem_pools():
    """A map that is negative everywhere keeps its values inside and becomes zero at the border."""
    stem = Stem(SMALL, nnx.Rngs(0))
    stem.conv.kernel[...] = jnp.zeros_like(stem.conv.kernel[...]).at[3, 3, 0].set(1.0)
    flat = -jnp.ones((1, 32, 32, 3)).at[..., 1:].set(0.0)
    pooled = np.asarray(stem(flat, is_training=False))
    assert pooled.shape == (1, 8, 8, 16)
    assert (pooled[:, 0] == 0).all()
    assert (pooled[:, :, 0] == 0).all()
    assert (pooled[:, 2:-1, 2:-1] < 0).all()


def test_running_in_pieces_gives_the_same_bits():
    net = Net(SMALL)
    params, stats = net.init(jax.random.key(0))
    params["head/linear/kernel"] = jnp.asarray(draw(64, 3))
    images = jnp.asarray(synthetic.images(33, 40))
    whole, _ = net.apply(params, stats, images)
    assert np.ptp(whole) > 0
    for cut in range(1, len(net.stages)):
        before = {path: value for path, value in params.items() if net.depth(stage_of(path)) < cut}
        after = {path: value for path, value in params.items() if path not in before}
        middle, _ = net.apply(before, stats, images, stop=cut)
        got, _ = net.apply(after, stats, middle, start=cut)
        np.testing.assert_array_equal(got, whole)


def test_half_precision_keeps_its_type():
    net = Net(SMALL)
    params, stats = net.init(jax.random.key(0))
    params = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    y, _ = net.apply(params, stats, jnp.asarray(synthetic.images(33, 40), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


def test_widths_that_do_not_divide_into_groups_are_all_named():
    with pytest.raises(ValueError, match="stem_width 20 .*; width 48 .* no multiple of 32, 4 x num_groups"):
        dataclasses.replace(SMALL, stem_width=20, widths=(48, 64))
    with pytest.raises(ValueError, match="want one positive number a layer each"):
        dataclasses.replace(SMALL, depths=(1, 1, 1))


def test_resnets_of_timm_with_batch_norm_are_not_taken_for_bit():
    _, layout, arrays, _ = opened("resnetv2_timm")
    assert layout.prefix(arrays) == ""
    assert layout.prefix({**arrays, "norm.running_mean": arrays["norm.weight"]}) is None


def test_names_of_timm_are_known():
    assert set(resnetv2.TIMM_NAMES.values()) == set(PUBLISHED)
    assert resnetv2.TIMM_NAMES["resnetv2_152x4_bit"] == "bit_r152x4"


def test_the_epsilon_of_bits_own_code():
    (settings,) = {config.weight_epsilon for config in ARCHITECTURES.values() if isinstance(config, ResNetV2Config)}
    assert settings == 1e-8
    assert dataclasses.replace(SMALL, **resnetv2.BIT_SETTINGS).weight_epsilon == 1e-10


def test_config_of_hugging_face_goes_both_ways():
    about, _ = read("resnetv2_hugging_face")
    architecture = resnetv2.from_hugging_face(about["config"])
    recorded = opened("resnetv2_hugging_face")[0].architecture
    assert isinstance(recorded, ResNetV2Config)
    assert architecture == dataclasses.replace(recorded, num_classes=0)
    written = resnetv2.to_hugging_face(architecture)
    assert {name: about["config"][name] for name in written if name != "architectures"} == {
        name: value for name, value in written.items() if name != "architectures"
    }
    assert resnetv2.from_hugging_face(written) == architecture
    wide = ARCHITECTURES["bit_r50x3"]
    there = resnetv2.from_hugging_face(resnetv2.to_hugging_face(wide))
    assert (there.scaled_widths, there.scaled_stem_width) == (wide.scaled_widths, wide.scaled_stem_width)


def test_every_switch_that_is_not_supported_is_named():
    config = read("resnetv2_hugging_face")[0]["config"]
    wrong = {
        "layer_type": "bottleneck", "hidden_act": "gelu", "global_padding": "SAME", "embedding_dynamic_padding": True,
        "output_stride": 16, "width_factor": 3, "hidden_sizes": [32, 64, 64, 72],
    }  # fmt: skip
    with pytest.raises(ValueError, match="model_type 'bit': not supported") as caught:
        resnetv2.from_hugging_face({**config, **wrong})
    for name in wrong:
        assert (name if name != "hidden_sizes" else "width 72 is no multiple of 32") in str(caught.value)
    with pytest.raises(ValueError, match="num_groups is missing"):
        resnetv2.from_hugging_face({name: value for name, value in config.items() if name != "num_groups"})
    five = {"depths": [1] * 5, "hidden_sizes": [32] * 5}
    with pytest.raises(ValueError, match="5 layers"):
        resnetv2.from_hugging_face({**config, **five})


def test_nets_that_transformers_would_compute_otherwise_are_not_written():
    with pytest.raises(ValueError, match=r"weight_epsilon 1e-10 is 1e-08 there; dataclasses.replace\(architecture"):
        resnetv2.to_hugging_face(dataclasses.replace(ARCHITECTURES["bit_r50x1"], **resnetv2.BIT_SETTINGS))
    narrow = ResNetV2Config(depths=(1,) * 5, widths=(16,) * 5, stem_width=4, num_groups=4, norm_epsilon=1e-3)
    with pytest.raises(ValueError, match="width 16 is no multiple of 32.*; norm_epsilon 0.001 .*; 5 layers"):
        resnetv2.to_hugging_face(narrow)
