import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.finetuning import assert_same_bits
from tljax.finetune.averages import average_decay, greedy_soup, interpolate, uniform_soup, update_average


def draw(seed):
    rng = np.random.default_rng(seed)
    kernel, scale = rng.normal(size=(5, 4)), rng.normal(size=3)
    return {"block_00/kernel": kernel.astype(np.float32), "norm/scale": scale.astype(np.float32)}


FIRST, SECOND = draw(0), draw(1)
WRONG = {"block_00/kernel": np.zeros((5, 3), np.float32), "norms/scale": np.zeros(3, np.float32)}


def on_device(values):
    return jax.tree.map(jnp.asarray, values)


@pytest.mark.parametrize(("step", "wanted"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (8990, 0.999), (10**6, 0.999)])
def test_the_decay_is_that_of_tensorflow(step, wanted):
    got = jax.jit(average_decay, static_argnums=1)(jnp.int32(step), 0.999)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_moving_average_equals_its_recursion():
    update = jax.jit(update_average, static_argnums=3)
    average, wanted = on_device(FIRST), {path: value.astype(np.float64) for path, value in FIRST.items()}
    for step in range(40):
        values = draw([2, step])
        average = update(average, values, jnp.int32(step), 0.7)
        decay = min(0.7, (1 + step) / (10 + step))
        wanted = {path: decay * value + (1 - decay) * values[path] for path, value in wanted.items()}
    for path, value in wanted.items():
        np.testing.assert_allclose(average[path], value, atol=1e-6)


def test_an_average_of_what_does_not_move_keeps_its_bits():
    assert_same_bits(update_average(on_device(FIRST), on_device(FIRST), 3, 0.9), FIRST)


def test_an_average_keeps_its_dtype():
    half = {path: value.astype(jnp.bfloat16) for path, value in on_device(SECOND).items()}
    full = {path: value.astype(jnp.float32) for path, value in half.items()}
    got = update_average(on_device(FIRST), half, 3, 0.9)
    assert_same_bits(got, update_average(on_device(FIRST), full, 3, 0.9))
    assert {value.dtype for value in got.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}, wanted 0 <= decay < 1"):
        average_decay(0, decay)


@pytest.mark.parametrize("convert", [dict, on_device])
def test_interpolation_equals_equation_2_of_wise_ft(convert):
    got = interpolate(convert(FIRST), convert(SECOND), 0.3)
    for path, value in got.items():
        assert value.dtype == np.float32
        wanted = 0.7 * FIRST[path].astype(np.float64) + 0.3 * SECOND[path].astype(np.float64)
        np.testing.assert_allclose(value, wanted, atol=1e-6)


def test_interpolation_ends_at_the_very_bits():
    # All that a product with 0 or a sum with 0 would change.
    first = {"block_00/kernel": np.array([-0.0, np.inf, 1e-45, 3.0], np.float32)}
    second = {"block_00/kernel": np.array([np.inf, -0.0, 0.1, np.nan], np.float32)}
    for convert in (dict, on_device):
        for alpha, wanted in ((0.0, first), (1.0, second)):
            (got,) = interpolate(convert(first), convert(second), alpha).values()
            assert np.asarray(got).tobytes() == wanted["block_00/kernel"].tobytes()


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan")])
def test_interpolation_does_not_leave_the_line(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}, wanted 0 <= alpha <= 1"):
        interpolate(FIRST, SECOND, alpha)


@pytest.mark.parametrize(
    ("average", "name"),
    [
        (lambda one, other: update_average(one, other, 0, 0.9), "the values"),
        (lambda one, other: interpolate(one, other, 0.0), "second"),
        (lambda one, other: uniform_soup([one, one, other]), "ingredient 2"),
        (lambda one, other: greedy_soup([one, one, other], lambda _: 0.0), "ingredient 2"),
    ],
)
def test_params_that_do_not_fit_are_listed_at_once(average, name):
    problems = (
        "missing 'norm/scale' (3,) (did you mean 'norms/scale'?)",
        "not wanted 'norms/scale' (3,) (did you mean 'norm/scale'?)",
        "shape of 'block_00/kernel' is (5, 3), wanted (5, 4)",
    )
    message = "\n".join(f"  {name}: {problem}" for problem in problems)
    with pytest.raises(ValueError, match=re.escape(message)):
        average(on_device(FIRST), on_device(WRONG))


def test_a_uniform_soup_is_the_mean_in_any_order():
    ingredients = [draw(seed) for seed in range(5)]
    wanted = {
        path: np.mean([one[path].astype(np.float64) for one in ingredients], axis=0).astype(np.float32)
        for path in FIRST
    }
    for order in itertools.islice(itertools.permutations(ingredients), 0, None, 17):
        assert_same_bits(uniform_soup(order), wanted)


def test_a_soup_of_one_net_is_that_net():
    half = {path: value.astype(jnp.bfloat16) for path, value in on_device(FIRST).items()}
    for one in (FIRST, half):
        for number in (1, 3, 7):
            got = uniform_soup([one] * number)
            assert {value.dtype for value in got.values()} == {np.asarray(value).dtype for value in one.values()}
            assert_same_bits(got, one)


@pytest.mark.parametrize("make", [uniform_soup, lambda ingredients: greedy_soup(ingredients, lambda _: 0.0)])
def test_a_soup_of_nothing_is_refused(make):
    with pytest.raises(ValueError, match="no ingredients for a soup"):
        make([])


def of_value(value):
    return {"head/bias": np.array([value], np.float32)}


def test_a_greedy_soup_keeps_what_does_not_lower_the_score():
    scored = []

    def score(params):
        (value,) = params["head/bias"]
        scored.append(float(value))
        return -abs(float(value) - 1.0)

    # Alone: index 3 (1.25), 1 (0.5), 2 (2.0), 0 (-3.0). 1.25 and 0.5 give 0.875, nearer to 1; 2.0 with both gives
    # 1.25, farther, and -3.0 farther still.
    ingredients = [of_value(value) for value in (-3.0, 0.5, 2.0, 1.25)]
    soup, kept = greedy_soup(ingredients, score)
    assert kept == (3, 1)
    assert_same_bits(soup, uniform_soup([ingredients[1], ingredients[3]]))
    assert scored[:4] == [-3.0, 0.5, 2.0, 1.25]
    assert scored[4:] == [0.875, 1.25, pytest.approx((1.25 + 0.5 - 3.0) / 3)]


def test_a_greedy_soup_keeps_what_leaves_the_score_as_it_is():
    # Recipe 1 says "not below": an equal score adds, and of equal nets the first comes first.
    ingredients = [of_value(value) for value in (1.0, 2.0, 3.0)]
    soup, kept = greedy_soup(ingredients, lambda params: 0.5)
    assert kept == (0, 1, 2)
    assert_same_bits(soup, of_value(2.0))


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"the mean of ingredients \[1\] is NaN"):
        greedy_soup(
            [FIRST, SECOND], lambda params: float("nan") if params["norm/scale"][0] != FIRST["norm/scale"][0] else 1.0
        )
