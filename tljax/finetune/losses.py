"""Losses and scores of a batch, one number an example, and what weighs them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int


def softmax_cross_entropy(
    scores: Float[Array, "b k"],
    labels: Int[Array, " b"] | Float[Array, "b k"],
    *,
    label_smoothing: float | jax.Array = 0.0,
) -> Float[Array, " b"]:
    """Compute the cross-entropy of softmax scores with smoothed labels, in float32.

    `-sum_k target_k log softmax(scores)_k` with `target = (1 - label_smoothing) * one_hot + label_smoothing / k`.
    For soft targets, which take the place of `one_hot`, this is the Kullback-Leibler divergence plus the entropy of
    the targets: the same gradient.

    Args:
        scores: unnormalised log-probabilities.
        labels: classes in [0, k), a label outside gives NaN, which stops training; or soft targets, whose rows sum
            to 1.
        label_smoothing: mass spread evenly over all k classes, in [0, 1); that of an array is not checked.

    Raises:
        ValueError: `label_smoothing` is outside [0, 1).

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    _check_smoothing(label_smoothing)
    log_probabilities = jax.nn.log_softmax(scores.astype(jnp.float32))
    num_classes = scores.shape[-1]
    if labels.ndim == 1:
        index = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
        of_label = jnp.take_along_axis(log_probabilities, index[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[
            :, 0
        ]
    else:
        of_label = jnp.sum(labels.astype(jnp.float32) * log_probabilities, axis=-1)
    return -(1.0 - label_smoothing) * of_label - label_smoothing * jnp.mean(log_probabilities, axis=-1)


def sigmoid_cross_entropy(
    scores: Float[Array, "b k"], targets: Float[Array, "b k"], *, label_smoothing: float | jax.Array = 0.0
) -> Float[Array, " b"]:
    """Compute the cross-entropy of independent sigmoid scores, for images with any number of labels, in float32.

    `-mean_k (target_k log sigmoid(score_k) + (1 - target_k) log sigmoid(-score_k))`. The mean over the classes, not
    their sum, as in PyTorch's `BCEWithLogitsLoss` and in timm, so that learning rates of their recipes hold.

    Args:
        scores: log-odds of each class.
        targets: 1 where the image has the label, else 0, or anything between.
        label_smoothing: every target becomes `(1 - label_smoothing) * target + label_smoothing / 2`, the formula of
            `softmax_cross_entropy` for two classes, in [0, 1).

    Raises:
        ValueError: `label_smoothing` is outside [0, 1).
    """
    _check_smoothing(label_smoothing)
    scores, targets = scores.astype(jnp.float32), targets.astype(jnp.float32)
    smoothed = (1.0 - label_smoothing) * targets + label_smoothing / 2
    # Not softplus(score) - target * score, which is the same but cancels to 0 where the score is high and right.
    losses = -smoothed * jax.nn.log_sigmoid(scores) - (1.0 - smoothed) * jax.nn.log_sigmoid(-scores)
    return jnp.mean(losses, axis=-1)


def one_hot_targets(labels: Int[Array, " b"], num_classes: int) -> Float32[Array, "b k"]:
    """Turn labels into rows of targets; a label outside [0, num_classes) gives a row of NaN, which stops training."""
    in_range = (labels >= 0) & (labels < num_classes)
    return jnp.where(in_range[:, None], jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), jnp.nan)


def as_targets(labels: Int[Array, " b"] | Float[Array, "b k"], num_classes: int) -> Float[Array, "b k"]:
    """Return rows of targets as they are, and labels as such rows; see `one_hot_targets`."""
    return one_hot_targets(labels, num_classes) if labels.ndim == 1 else labels


def is_correct(scores: Float[Array, "b k"], labels: Int[Array, " b"] | Float[Array, "b k"]) -> Float[Array, " b"]:
    """Return 1 where the highest score is the label's, or that of the largest soft target, else 0."""
    wanted = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    return (jnp.argmax(scores, axis=-1) == wanted).astype(jnp.float32)


def share_correct(scores: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, " b"]:
    """Return the share of the labels that are right, where a score from 0 and a target from 0.5 on is a yes."""
    return jnp.mean(((scores >= 0.0) == (targets >= 0.5)).astype(jnp.float32), axis=-1)


def example_shares(weights: Float[Array, " b"], axis_name: str | None = None) -> Float[Array, " b"]:
    """Scale weights to sum to 1, so that `sum(shares * losses)` is the weighted mean over the batch.

    Args:
        weights: at least 0, not all 0; equal weights give the plain mean.
        axis_name: of the mapped axis that the batch is spread over; the shares sum to 1 over all of it.
    """
    total = jnp.sum(weights)
    return weights / (total if axis_name is None else jax.lax.psum(total, axis_name))


def _check_smoothing(label_smoothing: float | jax.Array) -> None:
    # Of an array, a step that is compiled for many runs does not know the value.
    if not isinstance(label_smoothing, jax.Array) and not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, wanted 0 <= label_smoothing < 1")
