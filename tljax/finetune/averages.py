"""Means of params: over the steps of a run, between two nets, and over the runs of a job.

All work on flat dicts keyed by path. Running statistics of BatchNorm are dicts as well: average them beside the
params, or measure them anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.paths import diff

Arrays = dict[str, Any]


def average_decay(step: jax.Array | int, decay: float) -> jax.Array:
    """Return the decay of a moving average at a step: `min(decay, (1 + step) / (10 + step))`.

    A plain average would remember its start, an untrained head for one, for about `1 / (1 - decay)` steps.

    Args:
        step: number of updates before this one.
        decay: the limit, in [0, 1).

    Raises:
        ValueError: `decay` is out of range.

    Source:
        TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}, wanted 0 <= decay < 1")
    count = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + count) / (10 + count))


def update_average(
    average: Mapping[str, Any], values: Mapping[str, Any], step: jax.Array | int, decay: float
) -> Arrays:
    """Move an average towards values: `average + (1 - average_decay(step, decay)) * (values - average)`.

    Args:
        average: in the dtype it is to keep; float32, as half precision would round small moves away.
        values: of the same paths and shapes.
        step: as for `average_decay`.
        decay: the same.

    Raises:
        ValueError: other paths or shapes, or as `average_decay`.
    """
    _check_fit({"the values": values}, average, "the average")
    share = 1 - average_decay(step, decay)
    return {path: _move(value, values[path], share) for path, value in average.items()}


def _move(average: jax.Array, value: jax.Array, share: jax.Array) -> jax.Array:
    start = average.astype(jnp.float32)
    # In this form an average that equals the value stays what it is, to the bit.
    return (start + share * (value.astype(jnp.float32) - start)).astype(average.dtype)


def interpolate(first: Mapping[str, Any], second: Mapping[str, Any], alpha: float) -> Arrays:
    """Return `(1 - alpha) * first + alpha * second`, with the very bits of `first` at 0 and of `second` at 1.

    Args:
        first: params, such as the pretrained ones.
        second: params of the same paths and shapes, such as the fine-tuned ones.
        alpha: in [0, 1].

    Raises:
        ValueError: `alpha` is out of range, or the paths or shapes differ; all differences in one message.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT), equation 2.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, wanted 0 <= alpha <= 1")
    _check_fit({"second": second}, first, "first")
    # 0 times the other side would make NaN of its infinities, and 0 of a -0.
    if alpha in (0, 1):
        return dict(second if alpha else first)
    return {path: (1 - float(alpha)) * value + float(alpha) * second[path] for path, value in first.items()}


def uniform_soup(ingredients: Sequence[Mapping[str, Any]]) -> Arrays:
    """Average the params of several nets on the host, in float64, so that their order does not matter.

    Args:
        ingredients: one or more dicts of the same paths and shapes, fine-tuned from the same start.

    Returns:
        Numpy arrays in the dtypes of the first ingredient.

    Raises:
        ValueError: no ingredients, or paths or shapes that differ from those of the first.

    Source:
        Wortsman et al. 2022, arXiv:2203.05482 (model soups), the uniform soup.
    """
    _check_ingredients(ingredients)
    return {path: _mean([np.asarray(one[path]) for one in ingredients]) for path in ingredients[0]}


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    total = values[0].astype(np.float64)
    for value in values[1:]:
        total = total + value.astype(np.float64)
    return np.asarray(total / len(values)).astype(values[0].dtype)


def greedy_soup(
    ingredients: Sequence[Mapping[str, Any]], score: Callable[[Arrays], float]
) -> tuple[Arrays, tuple[int, ...]]:
    """Average those nets that do not lower the held-out score of the average.

    The net with the best score comes first; each of the others, in order of its own score, stays in if the score of
    the mean with it is not below that without it.

    Args:
        ingredients: as for `uniform_soup`.
        score: of params on held-out images, higher is better; called up to twice for each ingredient. The score of
            the soup on these images is too good: test it on others.

    Returns:
        The soup, and the indices of the ingredients in it, best first; of equals the first comes first.

    Raises:
        ValueError: a score is NaN, or as `uniform_soup`.

    Source:
        Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    _check_ingredients(ingredients)
    alone = [_score(score, ingredients, [index]) for index in range(len(ingredients))]
    first, *others = sorted(range(len(ingredients)), key=lambda index: -alone[index])
    kept, best = [first], alone[first]
    for index in others:
        with_it = _score(score, ingredients, [*kept, index])
        if with_it >= best:
            kept, best = [*kept, index], with_it
    return uniform_soup([ingredients[index] for index in kept]), tuple(kept)


def _score(score: Callable[[Arrays], float], ingredients: Sequence[Mapping[str, Any]], chosen: list[int]) -> float:
    value = float(score(uniform_soup([ingredients[index] for index in chosen])))
    if math.isnan(value):
        raise ValueError(f"the score of the mean of ingredients {chosen} is NaN, which is neither better nor worse")
    return value


def _check_ingredients(ingredients: Sequence[Mapping[str, Any]]) -> None:
    if not ingredients:
        raise ValueError("no ingredients for a soup; give at least one dict of params")
    others = {f"ingredient {index}": one for index, one in enumerate(ingredients) if index}
    _check_fit(others, ingredients[0], "ingredient 0")


def _check_fit(given: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any], wanted_name: str) -> None:
    problems = [f"{name}: {problem}" for name, values in given.items() for problem in diff(values, wanted)]
    if problems:
        raise ValueError(f"paths and shapes do not fit those of {wanted_name}:\n  " + "\n  ".join(problems))
