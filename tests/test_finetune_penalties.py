import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.toy import tiny_vit
from tljax.devices import make_mesh
from tljax.finetune.penalties import BSS, L2SP, FeatureDistillation, PenaltyInputs, make_penalties

RNG = np.random.default_rng(5)
STAGES = tiny_vit().stages
L2_SP = L2SP(strength=0.3, head_strength=0.07)
PARAMS, ORIGINAL = (
    {
        "block_00/linear/kernel": RNG.normal(size=(5, 4)).astype(np.float32),
        "block_00/linear/bias": RNG.normal(size=4).astype(np.float32),
        "norm/scale": RNG.normal(size=3).astype(np.float32),
        "head/linear/kernel": RNG.normal(size=(3, 2)).astype(np.float32),
    }
    for _ in range(2)
)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def make_inputs(params=None, original=None, outputs=None, original_outputs=None):
    # What a step passes are jax arrays, on which strict promotion holds.
    filled = (jax.tree.map(jnp.asarray, given or {}) for given in (params, original, outputs, original_outputs))
    names = ("params", "original", "outputs", "original_outputs")
    return PenaltyInputs(**dict(zip(names, filled, strict=True)))


def of_output(penalty, stage, original=None):
    """Return the penalty as a compiled function of the output of one stage."""
    others = {} if original is None else {stage: original}
    return jax.jit(lambda y: penalty(make_inputs(outputs={stage: y}, original_outputs=others)))


def slope(function, x, direction, step=1e-6):
    """Differentiate a float64 function along a direction by central differences."""
    x, direction = x.astype(np.float64), direction.astype(np.float64)
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def with_singular_values(num_rows, num_columns, values):
    rank = len(values)
    left, right = (np.linalg.qr(RNG.normal(size=(size, rank)))[0] for size in (num_rows, num_columns))
    return ((left * values) @ right.T).astype(np.float32)


def exact_bss(features, num_smallest):
    """Chen et al. 2019: the squares of the k smallest singular values."""
    return np.sum(np.linalg.svd(features.astype(np.float64), compute_uv=False)[-num_smallest:] ** 2)


def test_l2_sp_equals_the_equation_of_li_et_al():
    differences = [PARAMS[path].astype(np.float64) - ORIGINAL[path] for path in PARAMS if not path.startswith("head")]
    head = PARAMS["head/linear/kernel"].astype(np.float64)
    # arXiv:1802.01483, L2-SP: alpha / 2 ||w_S - w_S^0||^2 + beta / 2 ||w_not_S||^2
    wanted = 0.3 / 2 * sum(np.sum(one**2) for one in differences) + 0.07 / 2 * np.sum(head**2)
    got = jax.jit(lambda params: L2_SP(make_inputs(params, ORIGINAL)))(PARAMS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_the_gradient_of_l2_sp_leads_back_to_the_start_and_the_head_to_zero():
    grads = jax.grad(lambda params: L2_SP(make_inputs(params, ORIGINAL)))(jax.tree.map(jnp.asarray, PARAMS))
    for path, got in grads.items():
        wanted = 0.07 * PARAMS[path] if path.startswith("head") else 0.3 * (PARAMS[path] - ORIGINAL[path])
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_l2_sp_moves_nothing_at_the_start_and_never_the_start():
    def value(params, original):
        return L2SP(strength=0.3, head_strength=0.0)(make_inputs(params, original))

    assert value(PARAMS, PARAMS) == 0.0
    of_start = jax.grad(value, argnums=1)(jax.tree.map(jnp.asarray, PARAMS), jax.tree.map(jnp.asarray, ORIGINAL))
    assert all(not np.any(grad) for grad in of_start.values())


def test_l2_sp_sums_half_precision_params_in_float32():
    half = {path: jnp.asarray(value, jnp.bfloat16) for path, value in PARAMS.items()}
    full = {path: value.astype(jnp.float32) for path, value in half.items()}
    assert L2_SP(make_inputs(half, ORIGINAL)) == L2_SP(make_inputs(full, ORIGINAL))


def test_l2_sp_refuses_an_original_of_other_params():
    original = {path: value for path, value in ORIGINAL.items() if path != "norm/scale"}
    original["norms/scale"], original["block_00/linear/bias"] = draw(3), draw(5)
    message = r"(?s)missing 'norm/scale'.*not wanted 'norms/scale'.*\(5,\), wanted \(4,\)"
    with pytest.raises(ValueError, match=message):
        L2_SP(make_inputs(PARAMS, original))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
@pytest.mark.parametrize("num_smallest", [1, 3])
def test_bss_equals_the_equation_of_chen_et_al(shape, num_smallest):
    features = draw(*shape)
    got = of_output(BSS(strength=0.5, num_smallest=num_smallest, stage="norm"), "norm")(features)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 0.5 * exact_bss(features, num_smallest), rtol=2e-5)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_gradient_of_bss_equals_finite_differences(shape):
    features = draw(*shape)
    got = jax.grad(of_output(BSS(strength=0.5, num_smallest=2, stage="norm"), "norm"))(jnp.asarray(features))
    for _ in range(5):
        direction = draw(*shape)
        wanted = slope(lambda x: 0.5 * exact_bss(x, 2), features, direction)
        np.testing.assert_allclose(np.sum(np.asarray(got) * direction), wanted, rtol=1e-4, atol=1e-5)


def test_bss_keeps_the_digits_of_small_singular_values():
    # A Gram matrix in float32 would know 1e-3**2 beside 30**2 to no digit at all.
    features = with_singular_values(8, 12, [30.0, 20.0, 10.0, 5.0, 1.0, 0.5, 2e-3, 1e-3])
    got = of_output(BSS(strength=1.0, num_smallest=2, stage="norm"), "norm")(features)
    np.testing.assert_allclose(got, exact_bss(features, 2), rtol=2e-2)


def test_the_gradient_of_bss_is_exact_where_singular_values_are_equal():
    features = with_singular_values(6, 8, np.full(6, 2.0))
    penalty = of_output(BSS(strength=1.0, num_smallest=6, stage="norm"), "norm")
    # All six together are the squared norm of the matrix, whose gradient is twice the matrix.
    np.testing.assert_allclose(jax.grad(penalty)(jnp.asarray(features)), 2 * features, atol=1e-5)
    some = jax.grad(of_output(BSS(strength=1.0, num_smallest=2, stage="norm"), "norm"))(jnp.asarray(features))
    # Whichever two of them: directions of length 2 * sigma each.
    np.testing.assert_allclose(np.linalg.svd(some, compute_uv=False), [4, 4, 0, 0, 0, 0], atol=1e-5)


@pytest.mark.parametrize("features", [np.zeros((4, 6), np.float32), np.ones((4, 6), np.float32)])
def test_the_gradient_of_bss_vanishes_where_singular_values_do(features):
    value, grad = jax.value_and_grad(of_output(BSS(strength=1.0, num_smallest=3, stage="norm"), "norm"))(
        jnp.asarray(features)
    )
    np.testing.assert_allclose(value, 0.0, atol=1e-10)
    np.testing.assert_allclose(grad, np.zeros_like(features), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 8), (6, 3, 2, 8)])
def test_bss_averages_tokens_and_positions(shape):
    output = draw(*shape)
    features = output.astype(np.float64).mean(axis=tuple(range(1, len(shape) - 1)))
    got = of_output(BSS(strength=1.0, num_smallest=2, stage="block_01"), "block_01")(output)
    np.testing.assert_allclose(got, exact_bss(features, 2), rtol=2e-5)


def test_bss_of_a_batch_spread_over_devices_is_that_of_the_whole_batch():
    features = draw(16, 8)
    mesh = make_mesh(jax.devices())
    penalty = of_output(BSS(strength=1.0, num_smallest=2, stage="norm"), "norm")
    spread = jax.device_put(features, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    value, grad = jax.jit(jax.value_and_grad(penalty))(spread)
    np.testing.assert_allclose(value, exact_bss(features, 2), rtol=2e-5)
    np.testing.assert_allclose(grad, jax.grad(penalty)(jnp.asarray(features)), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_bss_refuses_more_singular_values_than_there_are(shape):
    with pytest.raises(ValueError, match="num_smallest is 5, wanted 1 to 4: features of stage 'norm'"):
        of_output(BSS(strength=1.0, num_smallest=5, stage="norm"), "norm")(draw(*shape))


def test_distillation_equals_its_definition():
    outputs = {"block_00": draw(3, 5, 4), "norm": draw(3, 2, 2, 6)}
    originals = {"block_00": draw(3, 5, 4), "norm": draw(3, 2, 2, 6)}
    # arXiv:1412.6550, equation 3, with a mean for half a sum.
    errors = [np.mean((outputs[one].astype(np.float64) - originals[one]) ** 2) for one in outputs]
    penalty = FeatureDistillation(strength=0.4, stages=("block_00", "norm"))
    got = jax.jit(lambda y: penalty(make_inputs(outputs=y, original_outputs=originals)))(outputs)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 0.4 * (errors[0] + errors[1]) / 2, rtol=1e-6)


def test_the_gradient_of_distillation_moves_the_output_and_never_the_original():
    output, original = draw(3, 5, 4), draw(3, 5, 4)
    penalty = FeatureDistillation(strength=0.4, stages=("norm",))

    def value(y, y0):
        return penalty(make_inputs(outputs={"norm": y}, original_outputs={"norm": y0}))

    got, of_original = jax.grad(value, argnums=(0, 1))(jnp.asarray(output), jnp.asarray(original))
    np.testing.assert_allclose(got, 0.4 * 2 * (output - original) / output.size, rtol=1e-5)
    assert not np.any(of_original)


def test_distillation_refuses_outputs_of_other_shapes():
    with pytest.raises(ValueError, match=r"stage 'norm' gives \(3, 4\), and the original net \(3, 5\)"):
        of_output(FeatureDistillation(strength=1.0, stages=("norm",)), "norm", draw(3, 5))(draw(3, 4))


def test_a_section_makes_penalties_that_say_what_they_read():
    section = {
        "l2_sp": {"strength": 0.1, "head_strength": 0.01},
        "bss": {"strength": 1e-3, "num_smallest": 1, "stage": "norm"},
        "distillation": {"strength": 0.5, "stages": ["block_01", "norm"]},
    }
    penalties = make_penalties(STAGES, section)
    assert penalties == (
        L2SP(strength=0.1, head_strength=0.01),
        BSS(strength=1e-3, num_smallest=1, stage="norm"),
        FeatureDistillation(strength=0.5, stages=("block_01", "norm")),
    )
    assert [penalty.taps for penalty in penalties] == [(), ("norm",), ("block_01", "norm")]
    assert [penalty.needs_original for penalty in penalties] == [False, False, True]
    # A compiled step closes over them.
    assert len({functools.partial, *penalties}) == 4
    assert make_penalties(STAGES, {}) == ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"l2sp": {}}, "l2sp: no such penalty (did you mean 'l2_sp'?); penalties are l2_sp, bss, distillation"),
        (
            {"l2_sp": {"strength": 1.0, "strenght": 0.0}},
            "l2_sp: no setting 'strenght' (did you mean 'strength'?); ",
        ),
        ({"l2_sp": {"strength": 1.0}}, "setting 'head_strength' is missing. Settings: strength, head_strength"),
        ({"l2_sp": {"strength": -1.0, "head_strength": 0.0}}, "strength is -1.0, wanted a finite number of 0 or more"),
        ({"l2_sp": {"strength": 1.0, "head_strength": float("nan")}}, "head_strength is nan, wanted"),
        ({"bss": {"strength": 1.0, "num_smallest": 0, "stage": "norm"}}, "num_smallest is 0, wanted 1 or more"),
        ({"bss": {"strength": 1.0, "num_smallest": 1, "stage": "norms"}}, "no stage 'norms' (did you mean 'norm'?)"),
        ({"distillation": {"strength": 1.0, "stages": []}}, "stages is (), wanted a sequence of one or more"),
        ({"distillation": {"strength": 1.0, "stages": ["head"]}}, "stages is ('head',), wanted"),
        ({"distillation": {"strength": 1.0, "stages": ["blok_01"]}}, "no stage 'blok_01' (did you mean 'block_01'?)"),
    ],
)
def test_a_wrong_section_is_refused(section, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_penalties(STAGES, section)


def test_all_that_is_wrong_with_a_section_is_said_at_once():
    section = {
        "l2_sp": {"strength": -1.0, "head_strength": 0.0},
        "bss": {"strength": 1.0, "stage": "norm", "k": 1},
        "mixup": {},
    }
    message = "(?s)l2_sp: .*\n  bss: no setting 'k'; setting 'num_smallest'.*\n  mixup: no such"
    with pytest.raises(ValueError, match=message):
        make_penalties(STAGES, section)
