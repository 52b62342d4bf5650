import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax.models import Net, VitConfig
from tljax.models.transformer import Norm
from tljax.paths import stage_of

# Three rows of four patches.
SMALL = VitConfig(depth=2, width=16, num_heads=2, patch_size=4, image_size=(12, 16), num_classes=3)
EVERY_SWITCH = {
    "registers": dataclasses.replace(
        SMALL, in_channels=1, activation="swiglu", mlp_width=24, num_registers=3, has_prefix_positions=False,
        use_layer_scale=True, is_norm_after_pooling=True, pooling="mean", representation_width=10, has_head_bias=False,
    ),
    "distillation": dataclasses.replace(
        SMALL, activation="quick_gelu", has_distillation_token=True, num_registers=2, has_patch_bias=False,
        has_embed_norm=True, norm_epsilon=1e-5, pooling="cls_distillation",
    ),
    "attention": dataclasses.replace(
        SMALL, activation="gelu_tanh", has_class_token=False, pooling="attention", mlp_width=20, representation_width=6,
    ),
    "cls_mean": dataclasses.replace(SMALL, pooling="cls_mean", num_registers=1),
}  # fmt: skip


def images(config, batch=2):
    return jax.random.normal(jax.random.key(3), (batch, *config.image_shape))


def drawn(net):
    """Return params that are nowhere zero or one, so that every switch shows in the output."""
    params, stats = net.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(params))
    return {
        path: value + 0.1 * jax.random.normal(key, value.shape)
        for key, (path, value) in zip(keys, params.items(), strict=True)
    }, stats


def embedded(config, **changed):
    """Return the tokens after the stage "embed", for params of zeros but for those given by their last names."""
    net = Net(config)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in net.shapes.items() if stage_of(path) == "embed"}
    for name, value in changed.items():
        params[f"embed/{name}"] += value
    tokens, _ = net.apply(params, {}, images(config, batch=1), stop="block_00")
    return np.asarray(tokens[0])


@pytest.mark.parametrize("name", EVERY_SWITCH)
def test_running_in_pieces_gives_the_same_bits(name):
    net = Net(EVERY_SWITCH[name])
    params, stats = drawn(net)
    whole, _ = net.apply(params, stats, images(net.architecture))
    assert whole.shape == (2, 3)
    y = images(net.architecture)
    for index, stage in enumerate(net.stages):
        own = {path: value for path, value in params.items() if stage_of(path) == stage}
        y, _ = net.apply(own, stats, y, start=index, stop=index + 1)
    np.testing.assert_array_equal(y, whole)


@pytest.mark.parametrize("name", EVERY_SWITCH)
def test_every_param_reaches_the_scores(name):
    net = Net(EVERY_SWITCH[name])
    params, stats = drawn(net)
    before, _ = net.apply(params, stats, images(net.architecture))
    # Halved and reversed, since a norm would undo a factor alone. The softmax does not see what all keys share.
    changed = {path: 0.5 * value[::-1] for path, value in params.items() if not path.endswith("attn/key/bias")}
    deaf = [
        path
        for path, value in changed.items()
        if np.array_equal(net.apply({**params, path: value}, stats, images(net.architecture))[0], before)
    ]
    assert deaf == []


@pytest.mark.parametrize("name", EVERY_SWITCH)
def test_every_norm_has_the_epsilon_of_the_config(name):
    """Beside variances near 1, recordings do not show it: 1e-5 for 1e-6 changes the output by less than 1e-5."""
    config = dataclasses.replace(EVERY_SWITCH[name], norm_epsilon=0.125)
    epsilons = [
        module.epsilon
        for stage in config.stages
        for _, module in nnx.iter_modules(config.build(stage, nnx.Rngs(0)))
        if isinstance(module, nnx.LayerNorm | Norm)
    ]
    assert len(epsilons) == 1 + 2 * config.depth + config.has_embed_norm + (config.pooling == "attention")
    assert set(epsilons) == {0.125}
    tokens = 0.5 * jax.random.normal(jax.random.key(2), (2, config.prefix_tokens + 12, 16))
    net = Net(dataclasses.replace(config, is_norm_after_pooling=False))
    got, _ = net.apply({"norm/scale": jnp.ones(16), "norm/bias": jnp.zeros(16)}, {}, tokens, start="norm", stop=4)
    centred = np.asarray(tokens) - np.asarray(tokens).mean(-1, keepdims=True)
    np.testing.assert_allclose(got, centred / np.sqrt(centred.var(-1, keepdims=True) + 0.125), rtol=1e-5, atol=1e-6)


def test_stages_of_the_switches():
    last = {name: Net(config).stages[4:] for name, config in EVERY_SWITCH.items()}
    assert last["registers"] == ("pre_logits", "head")
    assert last["distillation"] == ("head",)
    assert last["attention"] == ("pool", "pre_logits", "head")


@pytest.mark.parametrize("has_prefix_positions", [True, False])
def test_prefix_tokens_stand_in_order(has_prefix_positions):
    config = dataclasses.replace(
        SMALL, has_distillation_token=True, num_registers=2, has_prefix_positions=has_prefix_positions
    )
    registers = jnp.asarray([[[3.0] * 16, [4.0] * 16]])
    tokens = embedded(config, cls_token=1.0, distillation_token=2.0, registers=registers, **{"patch/bias": 5.0})
    assert config.prefix_tokens == 4
    np.testing.assert_array_equal(tokens[:, 0], [1, 2, 3, 4] + [5] * 12)


def test_registers_have_no_position():
    config = dataclasses.replace(SMALL, num_registers=2)
    positions = jnp.arange(13.0)[None, :, None]
    tokens = embedded(config, pos_embed=positions)
    np.testing.assert_array_equal(tokens[:, 0], [0, 0, 0, *range(1, 13)])
    free = dataclasses.replace(config, has_prefix_positions=False)
    tokens = embedded(free, pos_embed=positions[:, 1:])
    np.testing.assert_array_equal(tokens[:, 0], [0, 0, 0, *range(1, 13)])
    assert Net(free).shapes["embed/pos_embed"].shape == (1, 12, 16)


def test_patches_of_a_grid_that_is_no_square_stand_row_by_row():
    net = Net(SMALL)
    assert SMALL.grid == (3, 4)
    params, _ = net.init(jax.random.key(0))
    params = {path: jnp.zeros_like(value) for path, value in params.items() if stage_of(path) == "embed"}
    params["embed/patch/kernel"] += 1.0
    image = jnp.zeros((1, 12, 16, 3)).at[0, 4:8, 8:12].set(1.0)  # second row, third column
    tokens, _ = net.apply(params, {}, image, stop="block_00")
    # The class token, then a row of four.
    assert np.flatnonzero(tokens[0, :, 0]).tolist() == [1 + 4 + 2]
    with pytest.raises(ValueError, match=r"shape \(1, 16, 12, 3\), wanted floats of shape \('b', 12, 16, 3\)"):
        net.apply(params, {}, image.transpose(0, 2, 1, 3), stop="block_00")


def test_equal_nets_are_equal():
    assert dataclasses.replace(SMALL, image_size=(16, 16)) == dataclasses.replace(SMALL, image_size=16)
    assert dataclasses.replace(SMALL, mlp_width=64) == SMALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0, wanted 1 or more"),
        ({"patch_size": 0}, "patch_size is 0, wanted 1 or more"),
        ({"num_heads": -2}, "num_heads is -2, wanted 1 or more"),
        ({"num_heads": 3}, "width 16 is not a multiple of num_heads 3"),
        (
            {"image_size": (12, 18)},
            r"image_size \(12, 18\) is not a multiple of patch_size 4; the nearest are 16 and 20",
        ),
        ({"activation": "quickgelu"}, "activation 'quickgelu' is not known .did you mean 'quick_gelu'.*known: gelu, "),
        ({"pooling": "attentive"}, "pooling 'attentive' is not known.*known: cls, mean"),
        ({"has_class_token": False}, "pooling 'cls' needs has_class_token"),
        ({"has_class_token": False, "pooling": "cls_mean"}, "pooling 'cls_mean' needs has_class_token"),
        ({"pooling": "cls_distillation"}, "pooling 'cls_distillation' needs has_distillation_token"),
        (
            {"has_distillation_token": True, "pooling": "cls_distillation", "is_norm_after_pooling": True},
            "pooling 'cls_distillation' excludes is_norm_after_pooling",
        ),
        ({"pooling": "cls_mean", "is_norm_after_pooling": True}, "pooling 'cls_mean' excludes is_norm_after_pooling"),
        ({"pooling": "attention", "is_norm_after_pooling": True}, "pooling 'attention' excludes is_norm_after_pooling"),
        (
            {"pooling": "cls_mean", "representation_width": 8, "has_class_token": False},
            "pooling 'cls_mean' needs has_class_token; pooling 'cls_mean' excludes representation_width",
        ),
        ({"pooling": "attention", "activation": "swiglu"}, "pooling 'attention' excludes activation 'swiglu'"),
    ],
)
def test_switches_that_make_no_net_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
