"""Other ways to compute the same: the numbers of the plain ones, and what is lowered for which device."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from scipy.special import ndtr

from tests.toy import TINY_VIT
from tljax.finetune.costs import count_flops
from tljax.models import Net, fused, kernels, transformer
from tljax.models.attention import padded_attention
from tljax.models.fused import bias_gelu, layer_norm
from tljax.models.gelu import gelu
from tljax.models.kernels import Kernels, attention_way, gelu_way
from tljax.models.normalisation import LayerNorm
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


@pytest.mark.parametrize("num_tokens", [5, 8, 13])
def test_padding_changes_neither_attention_nor_its_gradients(num_tokens):
    arrays = [normal(seed, (2, num_tokens, 3, 8)) for seed in range(3)]
    weights = normal(3, arrays[0].shape)

    def loss(attend):
        return lambda *arrays: jnp.sum(weights * attend(*arrays))

    padded = functools.partial(padded_attention, implementation="xla")
    np.testing.assert_allclose(padded(*arrays), jax.nn.dot_product_attention(*arrays), rtol=1e-6, atol=1e-6)
    got, wanted = (
        jax.grad(loss(attend), argnums=(0, 1, 2))(*arrays) for attend in (padded, jax.nn.dot_product_attention)
    )
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def cuda_program(function, *arguments):
    """Lower for NVIDIA GPUs, without one."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def cuda(monkeypatch):
    """What asks for a GPU, and nothing else, is told that there is one."""
    for module in (kernels, fused):
        monkeypatch.setattr(module, "platform", lambda: "cuda")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


WIDE = dataclasses.replace(TINY_VIT, activation="gelu")


def program_of_a_step(dtype, chosen=None):
    net = Net(WIDE)
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

    def loss(params, x):
        return net.apply(params, {}, x, train_from=0, compute_dtype=dtype, kernels=chosen)[0].sum()

    # JAX's own attention mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        return cuda_program(jax.grad(loss), net.shapes, x)


@pytest.mark.usefixtures("cuda")
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
            program_of_a_step("bfloat16", Kernels(attention="xla", **ways))
            for ways in ({}, {"layer_norm": "pallas"}, {"bias_gelu": "pallas"})
        )
    assert "xla.gpu.triton" not in plain
    # Forward and backward, twice a block.
    assert norms.count("@__gpu$xla.gpu.triton(") == 4 * WIDE.depth
    assert gelus.count("@__gpu$xla.gpu.triton(") == WIDE.depth


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
    cotangent = normal(9, got.shape, got.dtype)
    pairs = [(got, wanted), *zip(pullback(cotangent), plain_pullback(cotangent), strict=True)]
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
    assert_same_derivatives(lambda *given: layer_norm(*given, EPSILON), plain_norm, arguments, tolerance)


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
    monkeypatch.setattr(fused, "_GROUPS", 3)
    x = normal(0, (1200, 512))
    assert fused._groups(1200, 8) == (3, 50)
    arguments = (x, 1 + normal(1, (512,), scale=0.3), normal(2, (512,), scale=0.3))
    assert_same_derivatives(lambda *given: layer_norm(*given, EPSILON), plain_norm, arguments, 2e-6)
    assert_same_derivatives(
        bias_gelu, lambda x, bias: jax.nn.gelu(x + bias[None], approximate=False), arguments[:2], 2e-6
    )


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
    "ways", [{"gelu": "cheap"}, {"layer_norm": "pallas"}, {"bias_gelu": "pallas"}], ids=lambda ways: next(iter(ways))
)
def test_a_net_gives_the_same_scores_and_gradients_either_way(ways):
    net = Net(dataclasses.replace(WIDE, depth=2))
    params, _ = net.init(jax.random.key(0))
    params = {path: value + normal(index, value.shape, scale=0.1) for index, (path, value) in enumerate(params.items())}
    x = normal(5, (2, 16, 16, 3))

    def run(chosen):
        def loss(params):
            return jnp.sum(jnp.sin(net.apply(params, {}, x, train_from=0, kernels=chosen)[0]))

        return jax.jit(jax.value_and_grad(loss))(params)

    (got, grads), (wanted, plain_grads) = run(Kernels(**ways)), run(Kernels())
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for path, grad in grads.items():
        # A bias of keys changes no attention.
        if not path.endswith("attn/key/bias"):
            assert np.linalg.norm(grad - plain_grads[path]) <= 1e-5 * np.linalg.norm(plain_grads[path]), path
