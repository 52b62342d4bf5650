"""Probes: equal to plain computations, and blind to what they are tested on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.neighbors import NearestNeighbors

from tljax.features import probes
from tljax.features.linear import standardisation
from tljax.features.logistic import fit_path
from tljax.features.probes import PROBES, ProbeData, fit_knn, fit_logistic, fit_mlp, knn_votes

OPTIONS = {
    "logistic": {"strengths": (1.0, 1e-1, 1e-2)},
    "knn": {"neighbours": (3, 5), "temperature": 0.07},
    "mlp": {"width": 4, "weight_decays": (0.01, 1.0), "num_steps": 6, "num_stops": 3},
}


def make_data(**changed):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120).astype(np.int32)
    features = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(120, 8)) + 2).astype(np.float32)
    rows = rng.permutation(120)
    values = {
        "features": features,
        "labels": labels,
        "num_classes": 3,
        "folds": [(rows[:60], rows[60:80]), (rows[20:80], rows[:20])],
        "train": rows[:80],
        "test": rows[80:],
        "seed": 0,
    }
    return ProbeData(**{**values, **changed})


@pytest.mark.parametrize("method", PROBES)
def test_give_probabilities_of_the_test_rows(method):
    data = make_data()
    probabilities, chosen = PROBES[method](data, **OPTIONS[method])
    assert probabilities.shape == (40, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    again, chosen_again = PROBES[method](data, **OPTIONS[method])
    np.testing.assert_array_equal(again, probabilities)
    assert chosen_again == chosen


@pytest.mark.parametrize("method", PROBES)
def test_are_blind_to_the_test_rows(method):
    data = make_data()
    labels, features = data.labels.copy(), data.features.copy()
    labels[data.test] = 0
    features[data.test[1:]] = 1e3
    wanted, chosen = PROBES[method](data, **OPTIONS[method])
    got, chosen_of_got = PROBES[method](make_data(labels=labels, features=features), **OPTIONS[method])
    assert chosen_of_got == chosen
    # Products of other rows may round differently.
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)


def test_logistic_is_the_fit_at_the_chosen_strength():
    data = make_data()
    probabilities, chosen = fit_logistic(data, strengths=(1e-2, 1.0, 1e-1))
    path = fit_path(data.features[data.train], data.labels[data.train], 3, (1.0, 1e-1, 1e-2))
    wanted = path.predict_proba(data.features[data.test])[path.strengths.index(chosen["strength"])]
    np.testing.assert_array_equal(probabilities, wanted)


def direct_votes(data, train, queries, count, temperature):
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(data.features[train].astype(np.float64))
    distances, nearest = search.kneighbors(data.features[queries].astype(np.float64))
    votes = np.exp((1 - distances) / temperature)
    shares = [
        [row[data.labels[train][near] == k].sum() for k in range(3)] for row, near in zip(votes, nearest, strict=True)
    ]
    return np.array(shares) / votes.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 40, 1024])
def test_votes_equal_a_direct_computation(monkeypatch, block):
    monkeypatch.setattr(probes, "_KNN_BLOCK", block)
    data = make_data()
    got = knn_votes(data.features[data.train], data.labels[data.train], data.features[data.test], 3, 6, 0.07)
    np.testing.assert_allclose(got, direct_votes(data, data.train, data.test, 6, 0.07), atol=1e-5)


def test_the_number_of_neighbours_is_right_most_often_held_out():
    data = make_data()
    counts = (1, 2, 4, 8, 16)
    hits = [
        sum(
            (direct_votes(data, train, held_out, count, 0.1).argmax(axis=1) == data.labels[held_out]).sum()
            for train, held_out in data.folds
        )
        for count in counts
    ]
    probabilities, chosen = fit_knn(data, neighbours=counts, temperature=0.1)
    best = counts[int(np.argmax(hits))]
    assert chosen == {"neighbours": best}
    np.testing.assert_allclose(probabilities, direct_votes(data, data.train, data.test, best, 0.1), atol=1e-5)


@pytest.mark.parametrize("neighbours", [(0, 5), (5, 61)])
def test_neighbours_that_are_not_there_are_refused(neighbours):
    with pytest.raises(ValueError, match="wanted 1 to 60, the training rows"):
        fit_knn(make_data(), neighbours=neighbours, temperature=0.07)


def plain_mlp(data, train, queries, decay, num_steps):
    """AdamW step by step, from the same initial params."""
    mean, scale = standardisation(data.features[train])
    rows, asked = (jnp.asarray((data.features[part] - mean) / scale) for part in (train, queries))
    keys = jax.random.split(jax.random.key(data.seed))
    params = [jax.nn.initializers.lecun_normal()(key, size) for key, size in zip(keys, ((8, 4), (4, 3)), strict=True)]
    params = [params[0], jnp.zeros((1, 4)), params[1], jnp.zeros((1, 3))]
    tx = optax.adamw(1e-3, weight_decay=decay, mask=[True, False, True, False])
    state = tx.init(params)

    def scores(params, rows):
        return jnp.maximum(rows @ params[0] + params[1], 0) @ params[2] + params[3]

    def loss(params):
        right = jnp.asarray(np.eye(3, dtype=bool)[data.labels[train]])
        return -jax.nn.log_softmax(scores(params, rows)).sum(where=right) / len(train)

    for _ in range(num_steps):
        grads = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(jax.nn.softmax(scores(params, asked)))


def test_mlp_equals_plain_adamw_at_the_best_held_out_stop():
    data = make_data()
    decays, stops = (0.01, 50.0), (2, 4, 6)
    losses = np.zeros((2, 3))
    for train, held_out in data.folds:
        right = np.arange(len(held_out)), data.labels[held_out]
        for i, decay in enumerate(decays):
            losses[i] -= [np.log(plain_mlp(data, train, held_out, decay, stop)[right]).mean() for stop in stops]
    decay, stop = np.unravel_index(losses.argmin(), losses.shape)
    probabilities, chosen = fit_mlp(data, width=4, weight_decays=decays, num_steps=6, num_stops=3)
    assert chosen == {"weight_decay": decays[decay], "num_steps": stops[stop]}
    wanted = plain_mlp(data, data.train, data.test, decays[decay], stops[stop])
    np.testing.assert_allclose(probabilities, wanted, atol=1e-6)


def test_stops_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is 7, wanted a multiple of num_stops, which is 3"):
        fit_mlp(make_data(), width=4, weight_decays=(0.1,), num_steps=7, num_stops=3)
