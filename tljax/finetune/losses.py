"""Losses and scores of a batch, one number an example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def softmax_cross_entropy(
    scores: Float[Array, "b k"], labels: Int[Array, " b"], *, label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Compute the cross-entropy of softmax scores with smoothed labels, in float32.

    `-sum_k target_k log softmax(scores)_k` with `target = (1 - label_smoothing) * one_hot + label_smoothing / k`.

    Args:
        scores: unnormalised log-probabilities.
        labels: classes in [0, k); a label outside gives NaN, which stops training.
        label_smoothing: mass spread evenly over all k classes, in [0, 1).

    Raises:
        ValueError: `label_smoothing` is outside [0, 1).

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, wanted 0 <= label_smoothing < 1")
    log_probabilities = jax.nn.log_softmax(scores.astype(jnp.float32))
    num_classes = scores.shape[-1]
    index = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    of_label = jnp.take_along_axis(log_probabilities, index[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]
    return -(1.0 - label_smoothing) * of_label - label_smoothing * jnp.mean(log_probabilities, axis=-1)


def is_correct(scores: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return 1 where the highest score is the label's, else 0."""
    return (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32)


def example_shares(weights: Float[Array, " b"], axis_name: str | None = None) -> Float[Array, " b"]:
    """Scale weights to sum to 1, so that `sum(shares * losses)` is the weighted mean over the batch.

    Args:
        weights: at least 0, not all 0; equal weights give the plain mean.
        axis_name: of the mapped axis that the batch is spread over; the shares sum to 1 over all of it.
    """
    total = jnp.sum(weights)
    return weights / (total if axis_name is None else jax.lax.psum(total, axis_name))
