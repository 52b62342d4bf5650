import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.finetune.losses import (
    example_shares,
    is_correct,
    one_hot_targets,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

RNG = np.random.default_rng(3)
SCORES = (4 * RNG.normal(size=(5, 3))).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0], np.int32)
TARGETS = RNG.dirichlet(np.ones(3), size=5).astype(np.float32)


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_soft_targets_give_the_divergence_plus_their_entropy(label_smoothing):
    target = (1 - label_smoothing) * TARGETS.astype(np.float64) + label_smoothing / 3
    probabilities = np.exp(SCORES.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    wanted = np.sum(target * np.log(target / probabilities) - target * np.log(target), axis=1)
    got = softmax_cross_entropy(jnp.asarray(SCORES), jnp.asarray(TARGETS), label_smoothing=label_smoothing)
    np.testing.assert_allclose(got, wanted, atol=3e-6)  # float32 losses up to about 10


def test_one_hot_targets_are_labels():
    targets = one_hot_targets(jnp.asarray(LABELS), 3)
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal(targets, np.eye(3)[LABELS])
    for scores in (jnp.asarray(SCORES), jnp.asarray(SCORES, jnp.bfloat16)):
        of_labels = softmax_cross_entropy(scores, jnp.asarray(LABELS), label_smoothing=0.1)
        np.testing.assert_array_equal(softmax_cross_entropy(scores, targets, label_smoothing=0.1), of_labels)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_a_target_of_nan(label):
    targets = one_hot_targets(jnp.asarray(LABELS).at[1].set(label), 3)
    assert np.isnan(targets).all(axis=1).tolist() == [False, True, False, False, False]
    for loss in (softmax_cross_entropy, sigmoid_cross_entropy):
        losses = loss(jnp.asarray(SCORES), targets, label_smoothing=0.1)
        assert np.isnan(losses).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_sigmoid_cross_entropy_is_the_mean_of_two_class_losses(label_smoothing):
    present = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]], np.float32)
    exact, target = SCORES.astype(np.float64), present * (1 - label_smoothing) + label_smoothing / 2
    probabilities = 1 / (1 + np.exp(-exact))
    wanted = -np.mean(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities), axis=1)
    got = sigmoid_cross_entropy(jnp.asarray(SCORES), jnp.asarray(present), label_smoothing=label_smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_sigmoid_cross_entropy_stands_extreme_scores():
    scores = jnp.asarray([[30.0, -30.0], [200.0, -200.0], [-200.0, 200.0]])
    targets = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    losses, grads = jax.vmap(jax.value_and_grad(lambda one, to: sigmoid_cross_entropy(one[None], to[None])[0]))(
        scores, targets
    )
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-30.0)), 0, 200], rtol=1e-6)
    # d loss / d score = (sigmoid(score) - target) / k
    np.testing.assert_allclose(grads[2], [-0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_smoothing_of_everything_is_refused(loss):
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        loss(jnp.asarray(SCORES), jnp.asarray(TARGETS), label_smoothing=1.0)


def test_is_correct():
    scores = jnp.asarray([[1.0, 2.0], [2.0, 1.0]])
    assert is_correct(scores, jnp.asarray([1, 1])).tolist() == [1.0, 0.0]
    assert is_correct(scores, jnp.asarray([[0.4, 0.6], [0.1, 0.9]])).tolist() == [1.0, 0.0]


def test_shares_sum_to_one_over_the_mapped_axis():
    weights = jnp.asarray([[1.0, 0.0], [2.0, 5.0]])
    np.testing.assert_array_equal(example_shares(weights[1]), np.array([2, 5], np.float32) / np.float32(7))
    shares = jax.vmap(lambda part: example_shares(part, "device"), axis_name="device")(weights)
    np.testing.assert_array_equal(shares, weights / 8)
