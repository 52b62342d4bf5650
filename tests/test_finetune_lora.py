import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.finetuning import assert_same_bits
from tests.toy import tiny_vit, toy_conv
from tljax.finetune.groups import make_groups
from tljax.finetune.kinds import is_decayed
from tljax.finetune.lora import LORA_RULES, add_lora, init_lora, is_lora
from tljax.models import ARCHITECTURES, Net, VggConfig, VitConfig

KEY = jax.random.key(3)
VIT, CONV = tiny_vit(), toy_conv()


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(0.5, 0.3, leaf.shape), jnp.float32) for path, leaf in shapes.items()}


def moved(lora):
    """Deltas that are not 0."""
    return draw(lora, seed=1)


def test_a_delta_is_two_entries():
    lora = init_lora(VIT.shapes, KEY, rules=[r"block_0[12]/attn/query/kernel"], rank=3)
    assert {path: value.shape for path, value in lora.items()} == {
        "block_01/attn/query/kernel/lora_a": (16, 3),
        "block_01/attn/query/kernel/lora_b": (3, 16),
        "block_02/attn/query/kernel/lora_a": (16, 3),
        "block_02/attn/query/kernel/lora_b": (3, 16),
    }
    assert all(is_lora(path) for path in lora)
    assert not any(is_lora(path) for path in VIT.shapes)
    conv = init_lora(CONV.shapes, KEY, rules="convolutions", rank=2)
    assert conv["layer_0/conv/kernel/lora_a"].shape == (3, 3, 3, 2)
    assert conv["layer_0/conv/kernel/lora_b"].shape == (2, 4)


def test_it_is_zero_at_first():
    params = draw(VIT.shapes)
    lora = init_lora(params, KEY, rules="all", rank=2)
    assert_same_bits(add_lora({**params, **lora}, scaling=0.5), params)
    assert all((value != 0).all() == path.endswith("lora_a") for path, value in lora.items())


def test_a_is_normal_with_the_variance_of_the_fan_in():
    shapes = {
        "x/conv/kernel": jax.ShapeDtypeStruct((3, 3, 16, 64), jnp.float32),
        "x/linear/kernel": jax.ShapeDtypeStruct((400, 64), jnp.float32),
    }
    lora = init_lora(shapes, KEY, rules="all", rank=64)
    for path, fan_in in (("x/conv/kernel/lora_a", 144), ("x/linear/kernel/lora_a", 400)):
        scaled = np.asarray(lora[path], np.float64) * np.sqrt(fan_in)
        # 9216 and 25600 draws; five standard errors of the mean and of the deviation, for the fewer.
        assert abs(scaled.mean()) < 5 / np.sqrt(9216)
        assert abs(scaled.std() - 1) < 5 / np.sqrt(2 * 9216)
        # The share within one deviation tells a normal from a uniform distribution (0.577).
        assert np.mean(np.abs(scaled) < 1) == pytest.approx(0.683, abs=0.025)


def test_the_draw_does_not_depend_on_what_else_is_chosen():
    one = init_lora(VIT.shapes, KEY, rules=["block_02/mlp/fc1/kernel"], rank=2)
    more = init_lora(dict(reversed(VIT.shapes.items())), KEY, rules="all", rank=2)
    assert_same_bits({path: more[path] for path in one}, one)
    drawn = [value.tobytes() for path, value in more.items() if path.endswith("lora_a")]
    assert len(drawn) == len({*drawn})
    # zlib.crc32 of the path, which does not change between processes and versions.
    key = jax.random.fold_in(KEY, 457_411_887)
    wanted = jax.random.normal(key, (16, 2)) / 4
    np.testing.assert_array_equal(one["block_02/mlp/fc1/kernel/lora_a"], wanted)


def test_merging_adds_the_product():
    shapes = {**VIT.shapes, **CONV.shapes}
    params = draw(shapes)
    lora = moved(init_lora(params, KEY, rules=[".*/kernel"], rank=2))
    merged = jax.jit(lambda values: add_lora(values, scaling=0.7))({**params, **lora})
    assert merged.keys() == shapes.keys()
    for path, value in merged.items():
        wanted = np.asarray(params[path], np.float64)
        if path.endswith("/kernel"):
            a, b = (np.asarray(lora[f"{path}/lora_{half}"], np.float64) for half in "ab")
            product = np.einsum("hwir,ro->hwio" if a.ndim == 4 else "ir,ro->io", a, b)
            wanted = wanted + 0.7 * product
            np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-6, err_msg=path)  # float32, terms of about 1
        else:
            np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_half_precision_kernels_are_added_to_in_full():
    a, b = jnp.asarray([[1.0, 1.0]]), jnp.asarray([[2**-7], [2**-16]])
    params = {"x/kernel": jnp.ones((1, 1), jnp.bfloat16), "x/kernel/lora_a": a, "x/kernel/lora_b": b}
    merged = add_lora(params, scaling=0.5)["x/kernel"]
    # The delta, 2**-8 + 2**-17, is a little above half of the way to the next bfloat16, 1 + 2**-7. Rounded to bfloat16
    # by itself it would be just half, and 1 + 2**-8 is rounded to 1, which is even.
    assert merged.dtype == jnp.bfloat16
    assert float(merged[0, 0]) == 1 + 2**-7


def test_without_deltas_the_same_arrays_come_back():
    params = draw(VIT.shapes)
    merged = add_lora(params, scaling=1.0)
    assert merged.keys() == params.keys()
    assert all(merged[path] is params[path] for path in params)
    lora = moved(init_lora(params, KEY, rules=["head/linear/kernel"], rank=1))
    merged = add_lora({**params, **lora}, scaling=1.0)
    assert [path for path in params if merged[path] is not params[path]] == ["head/linear/kernel"]


def test_a_linear_layer_computes_the_low_rank_branch():
    params = draw(CONV.shapes)
    lora = moved(init_lora(params, KEY, rules=["head/linear/kernel"], rank=2))
    x = jax.random.normal(KEY, (5, 2, 3, 4))
    got, _ = CONV.apply(add_lora({**params, **lora}, scaling=0.5), {}, x, start="head")
    pooled = np.asarray(x, np.float64).mean(axis=(1, 2))
    weight, bias = (np.asarray(params[f"head/linear/{name}"], np.float64) for name in ("kernel", "bias"))
    a, b = (np.asarray(lora[f"head/linear/kernel/lora_{half}"], np.float64) for half in "ab")
    # Hu et al. 2021, equation 3: h = W x + scaling B A x.
    np.testing.assert_allclose(got, pooled @ weight + 0.5 * (pooled @ a) @ b + bias, rtol=1e-5, atol=1e-6)


def test_a_convolution_computes_one_to_the_rank_and_one_by_one():
    params = draw(CONV.shapes)
    stats = {path: jnp.full(leaf.shape, 0.5 + path.endswith("var")) for path, leaf in CONV.stat_shapes.items()}
    lora = moved(init_lora(params, KEY, rules=["layer_0/conv/kernel"], rank=2))
    x = jax.random.normal(KEY, (2, 6, 5, 3))
    got, _ = CONV.apply(add_lora({**params, **lora}, scaling=0.5), stats, x, stop="layer_1")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    path = "layer_0/conv/kernel"
    reduced = convolve(x, lora[path + "/lora_a"])
    y = convolve(x, params[path]) + 0.5 * convolve(reduced, lora[path + "/lora_b"][None, None])
    y = np.asarray(y) + np.asarray(params["layer_0/conv/bias"])
    y = (y - 0.5) / np.sqrt(1.5 + 1e-5) * np.asarray(params["layer_0/norm/scale"])
    y = y + np.asarray(params["layer_0/norm/bias"])
    np.testing.assert_allclose(got, np.maximum(y, 0), rtol=1e-5, atol=1e-5)  # sums of 27 products in another order


def test_at_first_only_b_has_a_gradient():
    params = draw(CONV.shapes)
    stats = {path: jnp.ones(leaf.shape) for path, leaf in CONV.stat_shapes.items()}
    lora = init_lora(params, KEY, rules="convolutions", rank=2)
    x = jax.random.normal(KEY, (2, 6, 5, 3))

    def loss(lora):
        return jnp.sum(CONV.apply(add_lora({**params, **lora}, scaling=0.5), stats, x)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(lora)
    assert grads.keys() == lora.keys()
    for path, grad in grads.items():
        assert bool((grad != 0).any()) == path.endswith("lora_b"), path


def test_deltas_are_labelled_like_other_params():
    lora = init_lora(VIT.shapes, KEY, rules="query_value", rank=2)
    rules = [(".*/lora_[ab]", "lora")]
    groups = make_groups(
        {**VIT.shapes, **lora}, VIT.stages, freeze="head", rates={"lora": 0.5}, rules=rules, layer_decay=0.5
    )  # fmt: skip
    trained, frozen = groups.split({**VIT.shapes, **lora})
    assert trained.keys() == {*lora, "head/linear/kernel", "head/linear/bias"}
    assert "block_00/attn/query/kernel" in frozen
    assert groups.train_from == "block_00"
    assert groups.multiplier("block_00/attn/query/kernel/lora_a") == 0.5 * 0.5**4
    assert all(is_decayed(path, value.ndim) for path, value in lora.items())


def shallow(name):
    config = ARCHITECTURES[name]
    if isinstance(config, VitConfig):
        return Net(dataclasses.replace(config, depth=1, num_classes=2))
    if isinstance(config, VggConfig):
        return Net(dataclasses.replace(config, num_classes=2))
    return Net(dataclasses.replace(config, depths=(1,) * len(config.depths), num_classes=2))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "resnet50", "resnext50_32x4d", "bit_r50x1", "vgg11", "vgg16_bn", "vit_ti16", "deit_ti16_distilled",
        "deit3_s16", "dinov2_vits14_reg", "dinov2_vitg14", "clip_vitb32", "siglip_vitb16",
    ],
)  # fmt: skip
def test_the_named_choices_of_every_family(name):
    shapes = shallow(name).shapes
    kernels = {
        ndim: {path for path, leaf in shapes.items() if leaf.ndim == ndim and "/kernel" in path} for ndim in (2, 4)
    }
    before = {ndim: {path for path in kernels[ndim] if not path.startswith("head/")} for ndim in (2, 4)}
    is_vit = isinstance(ARCHITECTURES[name], VitConfig)
    attention = {path for path in before[2] if "/attn/" in path}
    wanted = {
        "linear": before[2],
        "convolutions": before[4],
        "all": before[2] | before[4],
        "attention": attention,
        "query_value": {path for path in attention if "/query/" in path or "/value/" in path},
    }
    assert wanted.keys() == LORA_RULES.keys()
    assert bool(attention) == is_vit
    for rules, paths in wanted.items():
        if not paths:
            with pytest.raises(ValueError, match="matches nothing"):
                init_lora(shapes, KEY, rules=rules, rank=1)
            continue
        got = jax.eval_shape(lambda key, rules=rules: init_lora(shapes, key, rules=rules, rank=1), KEY)
        assert got.keys() == {f"{path}/lora_{half}" for path in paths for half in "ab"}, rules


@pytest.mark.parametrize(
    ("rules", "rank", "message"),
    [
        ("atention", 2, r"rules='atention' \(did you mean 'attention'\?\), wanted one of query_value"),
        ([], 2, "rules are empty"),
        (["block_.*/attn/qkv/kernel", "embed/patch/kernel"], 2, "rule 'block_.*/attn/qkv/kernel' matches nothing"),
        (["block_00/(.*"], 2, "no regular expression"),
        (["block_00/attn/query/.*"], 2, r"'block_00/attn/query/bias' \(16,\) is no kernel of 2 or 4 dimensions"),
        (["embed/pos_embed"], 2, "is no kernel"),
        ("query_value", 0, r"rank is 0, wanted 1\.\.16 for 'block_00/attn/query/kernel'"),
        ("query_value", 17, r"rank is 17, wanted 1\.\.16"),
        (["head/linear/kernel"], 3, r"rank is 3, wanted 1\.\.2 for 'head/linear/kernel' \(32, 2\)"),
    ],
)
def test_mistakes_of_choosing_are_named(rules, rank, message):
    with pytest.raises(ValueError, match=message):
        init_lora(VIT.shapes, KEY, rules=rules, rank=rank)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("head/linear/kernel/lora_a", "'head/linear/kernel/lora_a' is missing"),
        ("head/linear/kernel/lora_b", "'head/linear/kernel/lora_b' is missing"),
        ("head/linear/kernel", "'head/linear/kernel' is missing"),
    ],
)
def test_an_incomplete_delta_is_refused(left_out, message):
    params = {**CONV.shapes, **init_lora(CONV.shapes, KEY, rules=["head/linear/kernel"], rank=2)}
    del params[left_out]
    with pytest.raises(ValueError, match=message):
        add_lora(params, scaling=1.0)


@pytest.mark.parametrize(("half", "shape"), [("a", (4, 1)), ("a", (3, 2)), ("b", (2, 3)), ("b", (1, 2, 2))])
def test_a_delta_of_another_shape_is_refused(half, shape):
    params = {**draw(CONV.shapes), **init_lora(CONV.shapes, KEY, rules=["head/linear/kernel"], rank=2)}
    params[f"head/linear/kernel/lora_{half}"] = jnp.zeros(shape)
    with pytest.raises(ValueError, match=r"'head/linear/kernel' \(4, 2\) does not fit"):
        add_lora(params, scaling=1.0)
