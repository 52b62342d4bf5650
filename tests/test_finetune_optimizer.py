import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.finetuning import assert_same_bits
from tljax.finetune.groups import make_groups
from tljax.finetune.optimizer import OPTIMIZERS, OptimizerState, carry_over, make_optimizer

STAGES = ("stem", "block_00", "head")
PARAMS = {
    "stem/kernel": jnp.linspace(-1, 1, 12).reshape(3, 4),
    "block_00/kernel": jnp.linspace(-2, 1, 12).reshape(4, 3),
    "block_00/bias": jnp.linspace(0.5, 1, 3),
    "head/linear/kernel": jnp.linspace(0.1, 2, 6).reshape(3, 2),
}
GRADS = {path: jnp.cos(7 * value) for path, value in PARAMS.items()}


def build(schedules=lambda step: 0.1, freeze: Any = 0, **settings) -> tuple[Any, Any]:
    groups = make_groups(PARAMS, STAGES, freeze=freeze, rates={"body": 0.5})
    settings = {"name": "adamw", "weight_decay": 0.0, "clip_norm": None, **settings}
    return groups, make_optimizer(groups, schedules, **settings)


def steps(tx, params: Any, num_steps=3, state=None) -> tuple[Any, Any]:
    state = tx.init(params) if state is None else state
    for _ in range(num_steps):
        updates, state = tx.update({path: GRADS[path] for path in params}, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_is_optax_s_own_at_the_rate_of_the_schedule(name):
    """Over several steps, with a rate that stays: the update is proportional to it."""
    _, tx = build(name=name)
    got, _ = steps(tx, PARAMS)
    function = getattr(optax, name)
    undecayed = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(function).parameters else {}
    for path in PARAMS:
        own = function(0.1 * (1.0 if path.startswith("head") else 0.5), **undecayed)
        wanted: Any = PARAMS[path]
        state = own.init(wanted)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = own.update(GRADS[path], state, wanted)
            wanted = optax.apply_updates(wanted, updates)
        # Two orders of multiplication.
        np.testing.assert_allclose(got[path], wanted, rtol=2e-5, atol=1e-6)


def test_adamw_by_hand():
    """Loshchilov and Hutter 2019, algorithm 2, in float64; the multiplier scales the decay too, biases have none."""
    _, tx = build(weight_decay=0.2, arguments={"b1": 0.8, "b2": 0.95, "eps": 1e-3})
    got, _ = steps(tx, PARAMS)
    for path, start in PARAMS.items():
        value, grad = np.asarray(start, np.float64), np.asarray(GRADS[path], np.float64)
        mean, square = np.zeros_like(value), np.zeros_like(value)
        rate, decay = 0.1 * (1.0 if path.startswith("head") else 0.5), 0.0 if path.endswith("bias") else 0.2
        for count in (1, 2, 3):
            mean, square = 0.8 * mean + 0.2 * grad, 0.95 * square + 0.05 * grad**2
            direction = mean / (1 - 0.8**count) / (np.sqrt(square / (1 - 0.95**count)) + 1e-3)
            value = value - rate * (direction + decay * value)
        np.testing.assert_allclose(got[path], value, rtol=1e-5, atol=1e-6)


def test_sgd_adds_the_decay_to_the_gradient_as_torch_does():
    _, tx = build(name="sgd", weight_decay=0.2, arguments={"momentum": 0.9})
    got, _ = steps(tx, PARAMS, 2)
    value, trace = np.asarray(PARAMS["head/linear/kernel"], np.float64), 0.0
    for _ in range(2):
        trace = 0.9 * trace + np.asarray(GRADS["head/linear/kernel"], np.float64) + 0.2 * value
        value = value - 0.1 * trace
    np.testing.assert_allclose(got["head/linear/kernel"], value, rtol=1e-5)


def test_each_label_has_a_schedule_of_its_own():
    schedules = {"body": lambda step: 0.1 * (step + 1.0), "head": lambda step: 1.0 / (step + 1.0)}
    _, tx = build(schedules, name="sgd")
    got, _ = steps(tx, PARAMS)
    for path, factor in (("stem/kernel", 0.5 * (0.1 + 0.2 + 0.3)), ("head/linear/kernel", 1 + 1 / 2 + 1 / 3)):
        np.testing.assert_allclose(got[path], PARAMS[path] - factor * GRADS[path], rtol=1e-5, atol=1e-6)


def test_clipping_is_by_the_norm_over_all_trained_params():
    _, tx = build(name="sgd", clip_norm=0.5)
    got, _ = steps(tx, PARAMS, 1)
    norm = np.sqrt(sum(np.sum(np.asarray(grad, np.float64) ** 2) for grad in GRADS.values()))
    wanted = PARAMS["head/linear/kernel"] - 0.1 * GRADS["head/linear/kernel"] * (0.5 / norm)
    np.testing.assert_allclose(got["head/linear/kernel"], wanted, rtol=1e-5, atol=1e-6)


def test_a_param_that_joins_later_takes_the_first_step_of_a_fresh_optimizer():
    """One count for all would leave Adam's first moment of the new param at a tenth, and its second at a thousandth."""
    groups, tx = build(freeze="head")
    head = {"head/linear/kernel": PARAMS["head/linear/kernel"]}
    _, before = steps(tx, head, 50)
    groups, tx = build(freeze="block_00")
    joined, _ = groups.split(PARAMS)
    state = carry_over(before, tx.init(joined))
    got, after = steps(tx, joined, 1, state)
    fresh, _ = steps(tx, joined, 1)
    assert_same_bits(got["block_00/kernel"], fresh["block_00/kernel"])
    assert not np.array_equal(got["head/linear/kernel"], fresh["head/linear/kernel"])
    assert int(after.params["head/linear/kernel"][0].count) == 51
    assert int(after.params["block_00/kernel"][0].count) == 1


def test_a_param_of_another_shape_starts_afresh():
    _, tx = build()
    _, before = steps(tx, PARAMS)
    larger = {**PARAMS, "stem/kernel": jnp.ones((5, 4))}
    state = carry_over(before, tx.init(larger))
    assert int(state.params["stem/kernel"][0].count) == 0
    assert int(state.params["block_00/kernel"][0].count) == 3


def test_the_state_does_not_depend_on_labels_and_the_first_moment_may_be_small():
    groups = make_groups(PARAMS, STAGES, freeze=0, rates={"slow": 0.1}, rules=[("stem/.*", "slow")])
    settings: dict[str, Any] = {"name": "adamw", "weight_decay": 0.0, "clip_norm": 1.0}
    ruled: Any = make_optimizer(groups, lambda step: 0.1, **settings).init(PARAMS)
    plain: Any = build()[1].init(PARAMS)
    assert jax.tree.structure(ruled.params) == jax.tree.structure(plain.params)
    small = build(arguments={"mu_dtype": "bfloat16"})[1].init(PARAMS)
    moments = small.params["stem/kernel"][0]
    assert (moments.mu.dtype, moments.nu.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamww"}, r"no optimizer 'adamww' \(did you mean 'adamw'\?\)"),
        ({"name": "lbfgs"}, "no optimizer 'lbfgs'"),
        ({"arguments": {"beta1": 0.9}}, r"no argument 'beta1' .*its arguments are b1, b2"),
        ({"arguments": {"weight_decay": 0.1}}, "no argument 'weight_decay'"),
        ({"name": "rmsprop", "arguments": {"momentum": 0.9}}, "no argument 'momentum'"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"clip_norm": 0.0}, "clip_norm 0.0"),
    ],
)
def test_what_there_is_not_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_update_wants_the_params():
    _, tx = build()
    state: OptimizerState = tx.init(PARAMS)
    with pytest.raises(ValueError, match="wants the params"):
        tx.update(GRADS, state)
