"""Other ways to compute the same: the numbers of the plain ones, and what is lowered for which device."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from scipy.special import ndtr

from tests.toy import TINY_VIT
from tljax.finetune.costs import count_flops
from tljax.models import Net, attention, kernels, row_kernels, transformer
from tljax.models.attention import attend
from tljax.models.folded import halve
from tljax.models.fused import bias_gelu, skip_and_norm
from tljax.models.fused_batch_norm import batch_norm
from tljax.models.gelu import gelu
from tljax.models.kernels import PLAIN_FORMULAS, Kernels, attention_way, gelu_way, own_way
from tljax.models.normalisation import BatchNorm, LayerNorm
from tljax.models.resnet import ResNetConfig
from tljax.paths import stage_of
from tljax.tasks.execution import Execution

EPSILON = 1e-6
# Widths that are, and are not, a power of two; rows that do not fill a block.
SHAPES = [(2, 5, 16), (3, 7, 24), (300, 384)]


def normal(seed, shape, dtype=jnp.float32, scale=1.0):
    return (scale * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def exact(x):
    """GELU and its first two derivatives in float64."""
    x = np.asarray(x, np.float64)
    pdf = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return x * ndtr(x), ndtr(x) + x * pdf, (2 - x * x) * pdf


# models/gelu.py


def derivative(function):
    return jax.vmap(jax.grad(function))


def test_the_cheap_gelu_is_exact_and_so_are_its_derivatives():
    x = np.concatenate([np.linspace(-12, 12, 200_001), np.linspace(-1e-3, 1e-3, 201)]).astype(np.float32)
    value, first, second = exact(x)
    # Of large numbers the last bit alone is more.
    bound = 3e-7 * np.maximum(1, np.abs(x))
    assert np.all(np.abs(jax.jit(gelu)(x) - value) < bound)
    assert np.all(np.abs(jax.jit(derivative(gelu))(x) - first) < 3e-7)
    assert np.all(np.abs(jax.jit(derivative(jax.grad(gelu)))(x) - second) < 3e-7)


def test_the_cheap_gelu_has_limits():
    x = jnp.asarray([np.inf, 1e30, 40.0, 0.0, -40.0, -1e30, -np.inf], jnp.float32)
    np.testing.assert_array_equal(gelu(x), np.asarray([np.inf, 1e30, 40, 0, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(derivative(gelu)(x), [1, 1, 1, 0.5, 0, 0, 0])
    assert np.isnan(gelu(jnp.float32(np.nan)))
    assert np.isnan(jax.grad(gelu)(jnp.float32(np.nan)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_cheap_gelu_rounds_once(dtype):
    x = jnp.linspace(-8, 8, 4001).astype(dtype)
    value, first, _ = exact(x)
    assert gelu(x).dtype == dtype
    # Half a unit of the last place, and the error of float32.
    unit = float(jnp.finfo(dtype).eps) / 2
    for got, wanted in ((gelu(x), value), (derivative(gelu)(x), first)):
        assert np.all(np.abs(np.asarray(got, np.float64) - wanted) <= 1.01 * unit * np.abs(wanted) + 1e-6)


def test_the_cheap_gelu_saves_its_input_alone_and_costs_less():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    _, pullback = jax.eval_shape(functools.partial(jax.vjp, gelu), x)
    assert [leaf.shape for leaf in jax.tree.leaves(pullback)] == [(64, 64)]

    def cost(function):
        return count_flops(jax.jit(jax.grad(lambda x: function(x).sum())).lower(x))

    assert cost(gelu) < 0.5 * cost(transformer.ACTIVATIONS["gelu"])


# models/attention.py


@pytest.mark.parametrize(("stop", "pooling"), [(None, "mean"), ("block_01", "cls")])
def test_filled_up_tokens_change_neither_scores_nor_gradients(monkeypatch, stop, pooling):
    """As where cuDNN wants a multiple of 8 of them; XLA computes the attention here."""
    net = Net(dataclasses.replace(WIDE, pooling=pooling))
    params, _ = net.init(jax.random.key(0))
    params = {path: value + normal(index, value.shape, scale=0.1) for index, (path, value) in enumerate(params.items())}
    x = normal(5, (2, 16, 16, 3))

    def run():
        def loss(params):
            y = net.apply(params, {}, x, stop=stop, train_from=0)[0]
            return jnp.sum(jnp.sin(y)), y

        running = net.stages[: net.depth(stop or len(net.stages))]
        return jax.value_and_grad(loss, has_aux=True)(
            {path: value for path, value in params.items() if stage_of(path) in running}
        )

    (_, plain), plain_grads = run()
    seen = []

    def spy(query, key, value, *, way, num_tokens):
        seen.append((way, query.shape[1], num_tokens))
        return attend(query, key, value, way="xla", num_tokens=num_tokens)

    for module in (transformer, attention):
        monkeypatch.setattr(module, "attention_way", lambda *_: "cudnn")
    monkeypatch.setattr(transformer, "attend", spy)
    (_, filled), grads = run()
    assert set(seen) == {("cudnn", 24, 17)}
    assert filled.shape == plain.shape
    np.testing.assert_allclose(filled, plain, rtol=1e-5, atol=1e-5)
    for path, grad in grads.items():
        if not path.endswith("attn/key/bias"):
            assert np.linalg.norm(grad - plain_grads[path]) <= 1e-5 * np.linalg.norm(plain_grads[path]), path


def cuda_program(function, *arguments):
    """Lower for NVIDIA GPUs, without one."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def cuda(monkeypatch):
    """What asks for a GPU, and nothing else, is told that there is one."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for module in (kernels, row_kernels):
        monkeypatch.setattr(module, "platform", lambda: "cuda")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


WIDE = dataclasses.replace(TINY_VIT, depth=2, activation="gelu")


def program_of_a_step(dtype, chosen=None):
    net = Net(WIDE)
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

    def loss(params, x):
        return net.apply(params, {}, x, train_from=0, compute_dtype=dtype, kernels=chosen)[0].sum()

    # JAX's own attention mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        return cuda_program(jax.grad(loss), net.shapes, x)


@pytest.mark.usefixtures("cuda")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_half_precision_takes_fused_attention_on_nvidia_gpus():
    # Of 17 tokens.
    program = program_of_a_step("bfloat16")
    assert program.count("@__cudnn$fmhaSoftmaxBackward(") == WIDE.depth
    assert program.count("@__cudnn$fmhaSoftmax(") == WIDE.depth
    assert "tensor<2x24x2x8xbf16>" in program
    for dtype, chosen in (("float32", None), ("bfloat16", Kernels(attention="xla"))):
        assert "cudnn" not in program_of_a_step(dtype, chosen)


@pytest.mark.usefixtures("cuda")
# jax 0.11 has Mosaic in its place, for Hopper and later.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_pallas_kernels_are_lowered_where_they_are_chosen():
    # What they are lowered for, from jax 0.11 on; cuDNN's attention wants a real device then.
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("device",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        plain, norms, gelus = (
            program_of_a_step("bfloat16", dataclasses.replace(PLAIN_FORMULAS, **ways))
            for ways in ({}, {"layer_norm": "pallas"}, {"bias_gelu": "pallas"})
        )
        assert program_of_a_step("bfloat16", Kernels(attention="xla")).count("@__gpu$xla.gpu.triton(") == 6 * WIDE.depth
    assert "xla.gpu.triton" not in plain
    # Forward and backward, twice a block and once.
    assert norms.count("@__gpu$xla.gpu.triton(") == 4 * WIDE.depth
    assert gelus.count("@__gpu$xla.gpu.triton(") == 2 * WIDE.depth


def test_the_device_decides_where_nothing_is_said(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    kernels._chosen.cache_clear()
    ways = {}
    for name in ("cpu", "cuda", "rocm", "tpu"):
        monkeypatch.setattr(kernels, "platform", lambda name=name: name)
        ways[name] = (attention_way(Kernels(), "bfloat16", 64), gelu_way(Kernels()))
    assert ways == {
        "cpu": ("xla", "plain"), "cuda": ("cudnn", "cheap"), "rocm": ("xla", "cheap"), "tpu": ("xla", "plain"),
    }  # fmt: skip
    assert caplog.messages == ["attention: cudnn", "gelu: cheap"]
    monkeypatch.setattr(kernels, "platform", lambda: "cuda")
    assert attention_way(Kernels(), "float32", 64) == "xla"
    assert attention_way(Kernels(), "bfloat16", 12) == "xla"
    assert attention_way(Kernels(), "bfloat16", 160) == "xla"
    assert attention_way(Kernels(attention="xla"), "bfloat16", 64) == "xla"
    assert gelu_way(Kernels(gelu="plain")) == "plain"
    with pytest.raises(ValueError, match="kernels.attention is 'cudnn', which takes bfloat16 .* got float32 and 64"):
        attention_way(Kernels(attention="cudnn"), "float32", 64)


def test_the_ways_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "cuda")
    assert kernels.describe(Kernels(), "bfloat16", 0) == (
        "on cuda: BatchNorm in training mode plain, first convolution of a ResNet folded"
    )
    assert kernels.describe(Kernels(), "bfloat16", 64) == (
        "on cuda: attention cudnn, exact GELU cheap, LayerNorm plain"
    )
    chosen = Kernels(attention="xla", layer_norm="pallas", bias_gelu="pallas")
    assert kernels.describe(chosen, "bfloat16", 64) == (
        "on cuda: attention xla, exact GELU together with its bias in pallas, LayerNorm pallas"
    )


def test_unknown_ways_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="kernels: attention is 'cudn' .*'cudnn'.*; gelu is 'exact', wanted auto"):
        Kernels(attention="cudn", gelu="exact")
    with pytest.raises(ValueError, match="config.execution.kernels: no key 'norm'"):
        Execution(kernels={"norm": "pallas"})
    monkeypatch.setattr("tljax.tasks.execution.platform", lambda: "cuda")
    with pytest.raises(ValueError, match="'pallas' kernels run on one device, and there are 8"):
        Execution(kernels={"layer_norm": "pallas"})


# models/fused.py


def plain_skip_and_norm(x, scale, bias):
    # Both cotangents are added in float32, and rounded once.
    wide = x.astype(jnp.float32)
    return wide.astype(x.dtype), plain_norm(wide, scale, bias).astype(x.dtype)


def plain_norm(x, scale, bias):
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)
    over = (None,) * (x.ndim - 1)
    return (centred * inverse * scale.astype(jnp.float32)[over] + bias.astype(jnp.float32)[over]).astype(x.dtype)


def assert_same_derivatives(function, plain, arguments, tolerance):
    """Compare results and cotangents; sums over rows are compared by their own size."""
    got, pullback = jax.vjp(function, *arguments)
    wanted, plain_pullback = jax.vjp(plain, *arguments)
    cotangents = jax.tree.map(lambda array: normal(9, array.shape, array.dtype), got)
    results = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    pairs = [*results, *zip(pullback(cotangents), plain_pullback(cotangents), strict=True)]
    for index, (one, other) in enumerate(pairs):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        one, other = (np.asarray(array, np.float64) for array in (one, other))
        assert np.max(np.abs(one - other)) <= tolerance * np.max(np.abs(other)), index


# Both compute in float32; of bfloat16 they differ where that rounds the other way, by 2**-8.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_norm_kernels_give_the_numbers_of_xla(shape, dtype, tolerance):
    # A mean that is large beside the spread.
    x = 5 + normal(0, shape, scale=2.0)
    arguments = (x.astype(dtype), 1 + normal(1, shape[-1:], dtype, 0.3), normal(2, shape[-1:], dtype, 0.3))
    assert_same_derivatives(lambda *given: skip_and_norm(*given, EPSILON), plain_skip_and_norm, arguments, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gelu_kernel_gives_the_numbers_of_xla(shape, dtype, tolerance):
    def plain(x, bias):
        shifted = x.astype(jnp.float32) + bias.astype(jnp.float32)[(None,) * (x.ndim - 1)]
        return jax.nn.gelu(shifted, approximate=False).astype(x.dtype)

    arguments = (normal(0, shape, dtype, 2.0), normal(1, shape[-1:], dtype))
    assert_same_derivatives(bias_gelu, plain, arguments, tolerance)


def test_rows_are_added_in_more_than_one_round(monkeypatch):
    """As on a GPU, where there are more blocks of rows than groups."""
    monkeypatch.setattr(row_kernels, "_PROGRAMS", 3)
    x = normal(0, (1200, 512))
    assert row_kernels.divide(1200, 8, 1) == (3, 50)
    arguments = (x, 1 + normal(1, (512,), scale=0.3), normal(2, (512,), scale=0.3))
    assert_same_derivatives(lambda *given: skip_and_norm(*given, EPSILON), plain_skip_and_norm, arguments, 2e-6)
    assert_same_derivatives(
        bias_gelu, lambda x, bias: jax.nn.gelu(x + bias[None], approximate=False), arguments[:2], 2e-6
    )


# models/fused_batch_norm.py


def plain_batch_norm(x, scale, bias, has_relu):
    wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean, variance = jnp.mean(wide, axes), jnp.var(wide, axes)
    over = (None,) * (x.ndim - 1)
    factor = jax.lax.rsqrt(variance + EPSILON) * scale
    y = (wide - mean[over]) * factor[over] + bias[over]
    return (jax.nn.relu(y) if has_relu else y).astype(x.dtype), mean, variance


@pytest.mark.parametrize(
    ("shape", "has_relu", "dtype", "tolerance"),
    [
        ((3, 5, 7, 24), True, jnp.float32, 5e-6),
        ((40, 300), False, jnp.float32, 5e-6),
        ((2, 64, 64), True, jnp.bfloat16, 2**-8),
    ],
)
def test_the_batch_norm_kernels_give_the_numbers_of_xla(monkeypatch, shape, has_relu, dtype, tolerance):
    monkeypatch.setattr(row_kernels, "_PROGRAMS", 3)
    x = 5 + normal(0, shape, scale=2.0)
    arguments = (x.astype(dtype), 1 + normal(1, shape[-1:], scale=0.3), normal(2, shape[-1:], scale=0.3))
    # Far from the means by a deviation.
    near = jnp.full(shape[-1:], 3.0)

    def run(function):
        y, pullback = jax.vjp(lambda *given: function(*given)[0], *arguments)
        return y, *function(*arguments)[1:], *pullback(normal(9, y.shape, y.dtype))

    got = run(lambda x, scale, bias: batch_norm(x, scale, bias, near, EPSILON, has_relu))
    wanted = run(lambda x, scale, bias: plain_batch_norm(x, scale, bias, has_relu))
    for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        one, other = (np.asarray(array, np.float64) for array in (one, other))
        assert np.max(np.abs(one - other)) <= tolerance * np.max(np.abs(other)), index


def test_kernels_of_many_runs_are_those_of_each():
    """Runs that train in one program map them."""
    x, scale = normal(0, (3, 10, 24)), 1 + normal(1, (3, 24), scale=0.3)

    def loss(x, scale):
        apply: Any = skip_and_norm
        x, y = apply(x, scale, 0.1 * scale, EPSILON)
        return jnp.sum(jnp.sin(x + bias_gelu(y, scale)))

    derivative = jax.grad(loss, argnums=(0, 1))
    for got, *wanted in zip(jax.vmap(derivative)(x, scale), *map(derivative, x, scale), strict=True):
        np.testing.assert_allclose(got, jnp.stack(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["plain", "pallas"])
def test_a_mean_that_is_large_beside_the_spread_costs_no_digits(way):
    """E[x^2] - E[x]^2 of the numbers themselves would be wrong by more than the variance."""
    norm = BatchNorm(4, epsilon=EPSILON, rngs=transformer.nnx.Rngs(0))
    norm.mean[...] = jnp.full((4,), 1001.0)
    x = 1000 + normal(0, (64, 4))
    y = norm(x, False, kernels=Kernels(batch_norm=way))
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / wide.std(0), atol=2e-3)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * wide.var(0), rtol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.9 * 1001 + 0.1 * wide.mean(0), rtol=1e-6)


def test_batch_norm_is_told_which_statistics_to_take():
    norm = BatchNorm(4, epsilon=EPSILON, rngs=transformer.nnx.Rngs(0))
    x = normal(0, (64, 4))
    with pytest.raises(ValueError, match="wanted use_running_average=True for the running statistics, or False"):
        norm(x)
    assert not norm.mean[...].any()
    np.testing.assert_allclose(norm(x, use_running_average=True), x, rtol=1e-6)


def test_kernels_of_our_own_are_for_a_single_nvidia_gpu(monkeypatch):
    names = ("layer_norm", "bias_gelu", "batch_norm")
    found = {}
    for name, count in (("cpu", 1), ("cuda", 1), ("cuda", 8), ("rocm", 1), ("tpu", 1)):
        monkeypatch.setattr(kernels, "platform", lambda name=name: name)
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        found[name, count] = {own_way(part, Kernels()) for part in names}
        assert {own_way(part, Kernels().without_own) for part in names} == {"plain"}
    assert found == {
        ("cpu", 1): {"plain"}, ("cuda", 1): {"pallas"}, ("cuda", 8): {"plain"}, ("rocm", 1): {"plain"},
        ("tpu", 1): {"plain"},
    }  # fmt: skip
    monkeypatch.setattr(kernels, "platform", lambda: "cuda")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert own_way("layer_norm", Kernels()) == "plain"


# models/folded.py


@pytest.mark.parametrize(("sides", "size", "channels"), [((32, 34), 7, 3), ((31, 33), 7, 3), ((17, 16), 3, 4)])
def test_a_folded_convolution_gives_the_numbers_of_a_plain_one(sides, size, channels):
    x, kernel = normal(0, (2, *sides, channels)), normal(1, (size, size, channels, 5))

    def plain(x, kernel):
        margin = (size // 2, size // 2)
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), (margin, margin), dimension_numbers=names)

    assert_same_derivatives(halve, plain, (x, kernel), 5e-6)


@pytest.mark.usefixtures("cuda")
def test_a_resnet_folds_its_first_convolution_on_nvidia_gpus():
    net = Net(ResNetConfig(depths=(1,), widths=(16,), num_classes=3))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    for chosen, shape in ((None, "4x4x16x64"), (PLAIN_FORMULAS, "7x7x3x64")):
        program = cuda_program(
            lambda *given, chosen=chosen: net.apply(*given, kernels=chosen)[0], net.shapes, net.stat_shapes, x
        )
        convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
        assert f"tensor<{shape}xf32>" in convolutions[0]


def test_plain_norm_is_that_of_the_models():
    """So that the kernels are compared with what they stand in for."""
    norm = LayerNorm(24, epsilon=EPSILON, rngs=transformer.nnx.Rngs(0))
    scale, bias = 1 + normal(1, (24,), scale=0.3), normal(2, (24,))
    for param, value in ((norm.scale, scale), (norm.bias, bias)):
        assert param is not None
        param[...] = value
    for dtype in (jnp.float32, jnp.bfloat16):
        x = normal(0, (3, 7, 24), dtype)
        np.testing.assert_allclose(
            norm(x).astype(jnp.float32), plain_norm(x, scale, bias).astype(jnp.float32), rtol=1e-6, atol=1e-6
        )


# Two of the sums in a block differ from the plain form by rounding.
@pytest.mark.parametrize(
    "ways",
    [{"gelu": "cheap"}, {"layer_norm": "pallas"}, {"bias_gelu": "pallas"}, {"batch_norm": "pallas"}],
    ids=lambda ways: next(iter(ways)),
)
def test_a_net_gives_the_same_scores_and_gradients_either_way(ways):
    resnet = ResNetConfig(depths=(1, 1), widths=(16, 32), num_classes=3)
    net = Net(resnet if "batch_norm" in ways else WIDE)
    params, stats = net.init(jax.random.key(0))
    params = {path: value + normal(index, value.shape, scale=0.1) for index, (path, value) in enumerate(params.items())}
    x = normal(5, (2, 16, 16, 3))

    def run(chosen):
        def loss(params):
            y, moved = net.apply(params, stats, x, train_from=0, kernels=chosen)
            return jnp.sum(jnp.sin(y)), moved

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    ((got, moved), grads), ((wanted, plain_moved), plain_grads) = run(Kernels(**ways)), run(Kernels())
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for path, value in moved.items():
        np.testing.assert_allclose(value, plain_moved[path], rtol=1e-5, atol=1e-6)
    for path, grad in grads.items():
        # A bias of keys changes no attention.
        if not path.endswith("attn/key/bias"):
            assert np.linalg.norm(grad - plain_grads[path]) <= 1e-5 * np.linalg.norm(plain_grads[path]), path
