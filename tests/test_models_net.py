import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.toy import TINY_VIT, ToyConvConfig, tiny_vit, toy_conv
from tljax.devices import MESH_AXES, make_mesh
from tljax.models import ARCHITECTURES, Net, architecture
from tljax.models.pooling import max_pool
from tljax.paths import stage_of

NETS = {
    **{name: Net(dataclasses.replace(config, num_classes=3)) for name, config in ARCHITECTURES.items()},
    "tiny_vit": tiny_vit(),
    "toy_conv": toy_conv(),
}


def images(size=16, batch=3):
    return jax.random.normal(jax.random.key(7), (batch, size, size, 3))


@pytest.mark.parametrize("name", NETS)
def test_contract_of_stages_and_paths(name):
    net = NETS[name]
    assert net.stages[-1] == "head"
    assert {stage_of(path) for path in net.shapes} == set(net.stages)
    assert {stage_of(path) for path in net.stat_shapes} <= set(net.stages)
    for family in ("block_", "layer_"):
        members = [stage for stage in net.stages if stage.startswith(family)]
        assert members == sorted(members)
    assert hash(net) == hash(Net(net.architecture))


def test_published_sizes():
    """Params of Hugging Face's Dinov2Model without the mask token: 22,056,192 for small (reference/elpv.md)."""
    net = Net(architecture("dinov2_vits14"))
    assert sum(leaf.size for leaf in net.shapes.values()) == 22_056_576 - 384
    # timm vit_small_patch16_224 without its head.
    assert sum(leaf.size for leaf in Net(architecture("vit_s16")).shapes.values()) == 21_665_664


def test_binding_goes_by_path_not_by_position():
    """nnx.merge binds by sorted position: give each of 12 blocks its own constant and read it back from its output."""
    config = dataclasses.replace(TINY_VIT, depth=12)
    net = Net(config)
    params, stats = net.init(jax.random.key(0))
    params = {path: jnp.zeros_like(value) for path, value in params.items()}
    for index in range(12):
        params[f"block_{index:02d}/mlp/fc2/bias"] += 2.0**index
        params[f"block_{index:02d}/layer_scale2/scale"] += 1.0
    shuffled = dict(sorted(params.items(), key=lambda item: hash(item[0])))
    tokens = jnp.zeros((1, 17, 16))
    for index in range(12):
        tokens, _ = net.apply(shuffled, stats, tokens, start=f"block_{index:02d}", stop=index + 2)
        np.testing.assert_array_equal(tokens, 2.0 ** (index + 1) - 1)


@pytest.mark.parametrize("name", ["tiny_vit", "toy_conv"])
def test_running_in_pieces_gives_the_same_bits(name):
    net = NETS[name]
    params, stats = net.init(jax.random.key(0))
    whole, _ = net.apply(params, stats, images())
    for cut in range(1, len(net.stages)):
        before = {path: value for path, value in params.items() if net.depth(stage_of(path)) < cut}
        after = {path: value for path, value in params.items() if path not in before}
        middle, _ = net.apply(before, stats, images(), stop=cut)
        got, _ = net.apply(after, stats, middle, start=net.stages[cut])
        np.testing.assert_array_equal(got, whole)


def test_statistics_of_stages_in_inference_mode_do_not_move_by_one_bit():
    net = toy_conv()
    params, stats = net.init(jax.random.key(0))
    _, same = net.apply(params, stats, images())
    _, some = net.apply(params, stats, images(), train_from="layer_1")
    _, every = net.apply(params, stats, images(), train_from=0)
    moved = lambda new: {stage_of(path) for path in stats if not np.array_equal(stats[path], new[path])}  # noqa: E731
    assert moved(same) == set()
    assert moved(some) == {"layer_1"}
    assert moved(every) == {"layer_0", "layer_1"}


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 16, 16, 3), "uint8"), ((2, 16, 20, 3), "float32"), ((16, 16, 3), "float32")]
)
def test_images_that_are_not_prepared_are_refused(shape, dtype):
    net = tiny_vit()
    params, stats = net.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"wanted floats of shape \('b', 16, 16, 3\); `Preprocess` resizes"):
        net.apply(params, stats, jnp.zeros(shape, dtype))


def test_params_that_do_not_fit_are_all_named():
    net = tiny_vit()
    params, stats = net.init(jax.random.key(0))
    params["block_01/mlp/fc3/bias"] = params.pop("block_01/mlp/fc1/bias")
    params["norm/scale"] = jnp.ones((3,))
    with pytest.raises(ValueError, match="do not fit stages embed") as caught:
        net.apply(params, stats, images())
    for part in ("missing 'block_01/mlp/fc1/bias' (64,)", "not wanted 'block_01/mlp/fc3/bias'", "'norm/scale' is (3,)"):
        assert part in str(caught.value)
    net.apply(params, stats, images(), stop="block_01")  # stages that do not run are not asked for


def test_unknown_stages_and_empty_ranges_are_refused():
    net = tiny_vit()
    with pytest.raises(ValueError, match="no stage 'block_3'.*did you mean 'block_03'"):
        net.depth("block_3")
    with pytest.raises(ValueError, match="stage index 8 is outside 0..7"):
        net.depth(8)
    params, stats = net.init(jax.random.key(0))
    with pytest.raises(ValueError, match="no stage 'blok_02'"):
        net.apply(params, stats, images(), train_from=0, frozen=("blok_02",))
    with pytest.raises(ValueError, match="start 'norm' is not before stop 'block_01'"):
        net.apply(params, stats, images(), start="norm", stop="block_01")


def test_pooling():
    net = tiny_vit()
    tokens = jnp.arange(2 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 3)
    np.testing.assert_array_equal(net.pool(tokens, "cls"), tokens[:, 0])
    np.testing.assert_allclose(net.pool(tokens, "mean"), np.asarray(tokens)[:, 1:].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(
        net.pool(tokens, "cls_mean"), np.concatenate([tokens[:, 0], net.pool(tokens, "mean")], axis=-1)
    )
    np.testing.assert_array_equal(net.pool(tokens, "max"), np.asarray(tokens)[:, 1:].max(axis=1))
    with pytest.raises(ValueError, match="needs a class token, and this network has none; use 'mean' or 'max'"):
        Net(ToyConvConfig()).pool(jnp.ones((1, 2, 2, 4)), "cls")
    with pytest.raises(ValueError, match="'cls_maen' is not known.*'cls_mean'"):
        net.pool(tokens, "cls_maen")


def test_image_sizes_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="nearest are 224 and 238"):
        dataclasses.replace(architecture("dinov2_vits14"), image_size=230)
    with pytest.raises(ValueError, match="not a multiple of num_heads 5"):
        dataclasses.replace(TINY_VIT, num_heads=5)
    with pytest.raises(ValueError, match="did you mean 'dinov2_vits14'"):
        architecture("dinov2_vits16")


def test_shapes_first_asked_for_inside_of_a_mapped_function_serve_outside_of_it():
    net = Net(ToyConvConfig(num_classes=5))
    spec = jax.sharding.PartitionSpec(MESH_AXES)
    params, stats = Net(net.architecture).init(jax.random.key(0))
    apply = jax.shard_map(
        lambda x: net.apply(params, stats, x)[0],
        mesh=make_mesh(jax.devices()), in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    jax.eval_shape(apply, images(size=8, batch=8))
    jax.jit(net.apply).lower(net.shapes, net.stat_shapes, images(size=8)).cost_analysis()


@pytest.mark.parametrize(("size", "stride", "margin"), [(3, 2, 1), (2, 2, 0), (3, 2, 0)])
def test_max_pool_is_that_of_flax_to_the_bit(size, stride, margin):
    """Zeros, of which there are many behind a ReLU, are equal: the cotangent goes to the first."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 9, 12, 3)).astype(jnp.bfloat16))
    margins: Any = ((margin, margin), (margin, margin))

    def run(function):
        y, pullback = jax.vjp(function, x)
        return y, pullback(jax.random.normal(jax.random.key(1), y.shape).astype(y.dtype))[0]

    got = run(lambda x: max_pool(x, size, stride, margin))
    wanted = run(lambda x: nnx.max_pool(x, (size, size), strides=(stride, stride), padding=margins))
    np.testing.assert_array_equal(got[0], wanted[0])
    # Where windows overlap, cotangents are added in float32, and were in bfloat16.
    np.testing.assert_allclose(got[1].astype(np.float32), wanted[1].astype(np.float32), rtol=2**-6, atol=2**-8)
    assert np.array_equal(got[1] != 0, wanted[1] != 0)
