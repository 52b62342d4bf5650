import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.finetune.losses import example_shares, is_correct, softmax_cross_entropy

RNG = np.random.default_rng(3)
SCORES = (4 * RNG.normal(size=(5, 3))).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0], np.int32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_definition(label_smoothing):
    target = (1 - label_smoothing) * np.eye(3)[LABELS] + label_smoothing / 3
    exact = SCORES.astype(np.float64)
    wanted = -np.sum(target * (exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))), axis=1)
    got = softmax_cross_entropy(jnp.asarray(SCORES), jnp.asarray(LABELS), label_smoothing=label_smoothing)
    np.testing.assert_allclose(got, wanted, atol=3e-6)  # float32 losses up to about 10


def test_half_precision_scores_are_summed_in_float32():
    scores = jnp.asarray(SCORES, jnp.bfloat16)
    got = softmax_cross_entropy(scores, jnp.asarray(LABELS))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, softmax_cross_entropy(scores.astype(jnp.float32), jnp.asarray(LABELS)))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_gives_nan(label):
    losses = softmax_cross_entropy(jnp.asarray(SCORES), jnp.asarray(LABELS).at[1].set(label))
    assert np.isnan(losses).tolist() == [False, True, False, False, False]


def test_smoothing_of_everything_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        softmax_cross_entropy(jnp.asarray(SCORES), jnp.asarray(LABELS), label_smoothing=1.0)


def test_is_correct():
    scores = jnp.asarray([[1.0, 2.0], [2.0, 1.0]])
    assert is_correct(scores, jnp.asarray([1, 1])).tolist() == [1.0, 0.0]


def test_shares_sum_to_one_over_the_mapped_axis():
    weights = jnp.asarray([[1.0, 0.0], [2.0, 5.0]])
    np.testing.assert_array_equal(example_shares(weights[1]), np.array([2, 5], np.float32) / np.float32(7))
    shares = jax.vmap(lambda part: example_shares(part, "device"), axis_name="device")(weights)
    np.testing.assert_array_equal(shares, weights / 8)
