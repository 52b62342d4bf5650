"""Simple classifiers on stored features, each chosen on held-out rows and tested on others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.features.linear import standardisation
from tljax.features.logistic import Fold, choose_strength, fit_path

Fitted = tuple[np.ndarray, dict[str, Any]]

# Rows of queries whose similarities to all training rows are held at once.
_KNN_BLOCK = 1024
_MLP_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeData:
    """Features and labels, and which rows are for what.

    Args:
        features: [n d], a row per example.
        labels: [n], positions of the classes.
        num_classes: number of classes.
        folds: (train, held out) positions to choose on; a single validation part is a list of one.
        train: positions to fit on after the choice.
        test: positions to predict.
        seed: of the run.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int
    folds: Sequence[Fold]
    train: np.ndarray
    test: np.ndarray
    seed: int


def fit_logistic(data: ProbeData, *, strengths: Sequence[float]) -> Fitted:
    """Fit logistic regression with the L2 strength of least held-out log-loss.

    Returns:
        Probabilities of the test rows [m k], and {"strength"}.
    """
    strength = choose_strength(data.features, data.labels, data.num_classes, data.folds, strengths)
    # The stronger ones before it are its warm start.
    path = [value for value in sorted(strengths, reverse=True) if value >= strength]
    fitted = fit_path(data.features[data.train], data.labels[data.train], data.num_classes, path)
    return fitted.predict_proba(data.features[data.test])[-1], {"strength": strength}


def fit_knn(data: ProbeData, *, neighbours: Sequence[int], temperature: float) -> Fitted:
    """Let the nearest training rows by cosine vote, with the number of them that is right most often held out.

    Args:
        data: features and labels.
        neighbours: numbers to choose from; of equal ones the first.
        temperature: a vote weighs exp(cosine / temperature).

    Returns:
        Shares of the votes for the test rows [m k], and {"neighbours"}.

    Source:
        Caron et al. 2021, arXiv:2104.14294, section 4.1, with temperature 0.07.
    """
    smallest = min(len(train) for train, _ in [*data.folds, (data.train, data.test)])
    if not 1 <= min(neighbours) <= max(neighbours) <= smallest:
        raise ValueError(f"neighbours are {list(neighbours)}, wanted 1 to {smallest}, the training rows")

    def vote(train: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
        return knn_votes(
            data.features[train], data.labels[train], data.features[queries], data.num_classes, count, temperature
        )

    def hits(count: int) -> int:
        return sum(int((vote(*fold, count).argmax(axis=1) == data.labels[fold[1]]).sum()) for fold in data.folds)

    best = max(neighbours, key=hits)
    return vote(data.train, data.test, best), {"neighbours": best}


def knn_votes(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, count: int, temperature: float
) -> np.ndarray:
    """Return the share of votes of the `count` nearest rows for each query, [m k]; memory grows with blocks."""
    known, asked = _unit_rows(features), _unit_rows(queries)
    shares = np.empty((len(queries), num_classes), np.float32)
    for start in range(0, len(queries), _KNN_BLOCK):
        cosines = asked[start : start + _KNN_BLOCK] @ known.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        # Relative to the nearest: the exponentials stay in range and the shares are the same.
        near = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        votes = weights[:, :, None] * (labels[nearest][:, :, None] == np.arange(num_classes))
        shares[start : start + len(cosines)] = votes.sum(axis=1) / weights.sum(axis=1, keepdims=True)
    return shares


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def fit_mlp(data: ProbeData, *, width: int, weight_decays: Sequence[float], num_steps: int, num_stops: int) -> Fitted:
    """Fit a network of one hidden layer, its weight decay and length of training of least held-out log-loss.

    Args:
        data: features and labels; features are standardised on the rows that are fitted.
        width: of the hidden layer.
        weight_decays: to choose from; all are trained at once.
        num_steps: full-batch steps of AdamW.
        num_stops: equally spaced steps to choose from, `num_steps` the last.

    Returns:
        Probabilities of the test rows [m k], and {"weight_decay", "num_steps"}.

    Raises:
        ValueError: `num_steps` is not a multiple of `num_stops`.
    """
    if num_stops < 1 or num_steps % num_stops:
        raise ValueError(f"num_steps is {num_steps}, wanted a multiple of num_stops, which is {num_stops}")

    def train(train: np.ndarray, queries: np.ndarray) -> np.ndarray:
        mean, scale = standardisation(data.features[train])
        rows, asked = (((data.features[part] - mean) / scale).astype(np.float32) for part in (train, queries))
        targets = np.eye(data.num_classes, dtype=np.float32)[data.labels[train]]
        key = jax.random.key(data.seed)
        decays = np.asarray(weight_decays, np.float32)
        return np.asarray(_train_mlps(rows, targets, asked, decays, key, width, num_steps, num_stops))

    losses = []
    for fold in data.folds:
        probabilities = train(*fold)  # decay stop row class
        chosen = probabilities[:, :, np.arange(len(fold[1])), data.labels[fold[1]]]
        losses.append(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean(axis=2))
    mean_losses = np.mean(losses, axis=0)
    decay, stop = np.unravel_index(mean_losses.argmin(), mean_losses.shape)
    choice = {"weight_decay": weight_decays[decay], "num_steps": int(num_steps // num_stops * (stop + 1))}
    return train(data.train, data.test)[decay, stop], choice


@partial(jax.jit, static_argnames=("width", "num_steps", "num_stops"))
def _train_mlps(
    rows: jax.Array,
    targets: jax.Array,
    queries: jax.Array,
    decays: jax.Array,
    key: jax.Array,
    width: int,
    num_steps: int,
    num_stops: int,
) -> jax.Array:
    """Train one network per decay; return the probabilities of the queries at each stop."""
    initialise = jax.nn.initializers.lecun_normal()
    first_key, second_key = jax.random.split(key)
    params = {
        "hidden": initialise(first_key, (rows.shape[1], width), jnp.float32),
        "hidden_bias": jnp.zeros((1, width), jnp.float32),
        "out": initialise(second_key, (width, targets.shape[1]), jnp.float32),
        "out_bias": jnp.zeros((1, targets.shape[1]), jnp.float32),
    }

    def scores(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        return jax.nn.relu(rows @ params["hidden"] + params["hidden_bias"]) @ params["out"] + params["out_bias"]

    def train(decay: jax.Array) -> jax.Array:
        tx = optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay, mask={name: not name.endswith("bias") for name in params}),
            optax.scale(-_MLP_LEARNING_RATE),
        )

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(lambda p: optax.safe_softmax_cross_entropy(scores(p, rows), targets).mean())(params)
            # optax raises a float to the integer count of steps.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def until_stop(carry: Any, _: None) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, length=num_steps // num_stops)
            return carry, jax.nn.softmax(scores(carry[0], queries))

        return jax.lax.scan(until_stop, (params, tx.init(params)), length=num_stops)[1]

    return jax.vmap(train)(decays)


PROBES: dict[str, Callable[..., Fitted]] = {"logistic": fit_logistic, "knn": fit_knn, "mlp": fit_mlp}
