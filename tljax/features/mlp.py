"""A network of one hidden layer, trained for every width, learning rate and weight decay at once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tljax.features.labels import Labels, as_targets, is_multilabel
from tljax.features.linear import sigmoid, softmax, standardisation

Params = dict[str, Any]

# Rows and columns are padded to multiples of them, so that folds of about one size share a compiled program.
_ROW_MULTIPLE = 64
_COLUMN_MULTIPLE = 8


class Recipe(NamedTuple):
    """What a network of the grid is trained with."""

    width: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A trained network, and what standardises its features."""

    params: dict[str, np.ndarray]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    is_multilabel: bool

    def predict_proba(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Return the probability of every class, or of every label."""
        rows = ((features - self.mean) / self.scale).astype(np.float32)
        hidden = np.maximum(rows @ self.params["hidden"] + self.params["hidden_bias"], 0)
        scores = hidden @ self.params["out"] + self.params["out_bias"]
        return sigmoid(scores) if self.is_multilabel else softmax(scores)


def make_grid(
    widths: Sequence[int], learning_rates: Sequence[float], weight_decays: Sequence[float]
) -> tuple[Recipe, ...]:
    """Return every combination."""
    return tuple(Recipe(*values) for values in itertools.product(widths, learning_rates, weight_decays))


def train_grid(
    features: Float[np.ndarray, "n d"],
    labels: Labels,
    num_classes: int,
    recipes: Sequence[Recipe],
    *,
    stops: Sequence[int],
    seed: int,
    weights: Float[np.ndarray, " n"] | None = None,
) -> list[list[Network]]:
    """Train a network for each recipe by full-batch AdamW, all in one program.

    The seed alone determines where a width starts, so a network does not depend on those trained beside it.

    Args:
        features: of the training examples; their mean and standard deviation standardise.
        labels: positions of classes; or targets of 0 and 1 for every label.
        num_classes: number of classes, or of labels.
        recipes: one or more.
        stops: rising numbers of steps after which to keep the networks.
        seed: of the initial params.
        weights: of the examples, with a mean near 1; None weighs all alike.

    Returns:
        The networks of each stop, in the order of the recipes.

    Raises:
        ValueError: features that are not finite.
    """
    mean, scale = standardisation(features)
    rows, columns = (0, -len(labels) % _ROW_MULTIPLE), (0, -features.shape[1] % _COLUMN_MULTIPLE)
    shares = np.ones(len(labels)) if weights is None else weights
    examples = (
        np.pad(((features - mean) / scale).astype(np.float32), (rows, columns)),
        np.pad(as_targets(labels, num_classes), (rows, (0, 0))),
        np.pad((shares / len(labels)).astype(np.float32), rows),
    )
    widths, rates, decays = zip(*recipes, strict=True)
    has_unit = np.arange(max(widths)) < np.array(widths)[:, None]
    grid = has_unit.astype(np.float32), np.asarray(rates, np.float32), np.asarray(decays, np.float32)
    params = _initialise(jax.random.key(seed), widths, features.shape[1], num_classes)
    carry = params, jax.vmap(_adam().init)(params)
    networks, done = [], 0
    for stop in stops:
        # A traced number of steps: one program for all.
        carry = _train(carry, *examples, *grid, np.int32(stop - done), is_multilabel(labels))
        done = stop
        params = jax.device_get(carry[0])
        params["hidden"] = params["hidden"][:, : features.shape[1]]
        networks.append(
            [
                Network(
                    params={name: value[position] for name, value in params.items()},
                    mean=mean,
                    scale=scale,
                    is_multilabel=is_multilabel(labels),
                )
                for position in range(len(recipes))
            ]
        )
    return networks


def _initialise(key: Array, widths: Sequence[int], d: int, num_classes: int) -> Params:
    """Draw params for each width, with zeros in place of the units that a narrower one lacks."""
    draw = jax.nn.initializers.lecun_normal()
    hidden_key, out_key = jax.random.split(key)
    widest, extra = max(widths), -d % _COLUMN_MULTIPLE
    hidden = [jnp.pad(draw(hidden_key, (d, width)), ((0, extra), (0, widest - width))) for width in widths]
    out = [jnp.pad(draw(out_key, (width, num_classes)), ((0, widest - width), (0, 0))) for width in widths]
    return {
        "hidden": jnp.stack(hidden),
        "hidden_bias": jnp.zeros((len(widths), 1, widest), jnp.float32),
        "out": jnp.stack(out),
        "out_bias": jnp.zeros((len(widths), 1, num_classes), jnp.float32),
    }


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam()


@partial(jax.jit, static_argnames="has_many_labels")
def _train(
    carry: tuple[Params, Any],
    rows: Float[Array, "n d"],
    targets: Float[Array, "n k"],
    shares: Float[Array, " n"],
    has_unit: Float[Array, "g units"],
    learning_rates: Float[Array, " g"],
    weight_decays: Float[Array, " g"],
    num_steps: Array,
    has_many_labels: bool,
) -> tuple[Params, Any]:
    """Take steps with every network of the grid."""

    def train(one: tuple[Params, Any], units: Array, rate: Array, decay: Array) -> tuple[Params, Any]:
        def loss(params: Params) -> Array:
            hidden = jax.nn.relu(rows @ params["hidden"] + params["hidden_bias"]) * units[None]
            scores = hidden @ params["out"] + params["out_bias"]
            if has_many_labels:
                losses = optax.sigmoid_binary_cross_entropy(scores, targets).mean(axis=1)
            else:
                losses = optax.safe_softmax_cross_entropy(scores, targets)
            return shares @ losses

        def step(_: Array, state: tuple[Params, Any]) -> tuple[Params, Any]:
            params, moments = state
            # optax raises a float to the integer count of steps.
            with jax.numpy_dtype_promotion("standard"):
                updates, moments = _adam().update(jax.grad(loss)(params), moments)
            moves = cast(Params, updates)
            decays = {name: 0 * decay if name.endswith("bias") else decay for name in params}
            moved = {name: params[name] - rate * (moves[name] + decays[name] * params[name]) for name in params}
            return moved, moments

        return jax.lax.fori_loop(0, num_steps, step, one)

    return jax.vmap(train)(carry, has_unit, learning_rates, weight_decays)
