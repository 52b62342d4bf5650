"""Probes: equal to plain computations, and blind to what they are tested on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.neighbors import NearestNeighbors

from tljax.features.choosing import ProbeData
from tljax.features.linear import standardisation
from tljax.features.logistic import fit_path
from tljax.features.mlp import Recipe, train_grid
from tljax.features.nearest_mean import fit_class_means
from tljax.features.probes import PROBES, fit_knn, fit_logistic, fit_mlp, fit_nearest_mean, fit_ridge
from tljax.features.ridge import fit_ridge_path

OPTIONS = {
    "logistic": {"strengths": (1.0, 1e-1, 1e-2)},
    "ridge": {"strengths": (1.0, 1e-1, 1e-2), "use_leave_one_out": False},
    "knn": {"neighbours": (3, 5), "temperature": 0.07},
    "nearest_mean": {"metric": "cosine", "temperatures": (0.1, 0.2)},
    "mlp": {"widths": (4,), "learning_rates": (0.1,), "weight_decays": (0.01, 1.0), "num_steps": 30, "num_stops": 3},
}
# Classes are needed there.
NO_LABELS = ("nearest_mean",)
WEIGHTED = ("logistic", "ridge", "mlp")
ROWS = np.random.default_rng(1).permutation(120)
TEST = ROWS[80:]


def make_data(**changed):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120).astype(np.int32)
    features = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(120, 8)) + 2).astype(np.float32)
    values = {
        "features": features,
        "labels": labels,
        "num_classes": 3,
        "folds": [(ROWS[:60], ROWS[60:80]), (ROWS[20:80], ROWS[:20])],
        "train": ROWS[:80],
        "seed": 0,
    }
    return ProbeData(**{**values, **changed})


def fit(method, data, **options):
    fitted = PROBES[method](data, **OPTIONS[method], **options)
    return fitted.classifier.predict_proba(data.features[TEST]), fitted.chosen


@pytest.mark.parametrize("method", PROBES)
def test_give_probabilities_of_new_rows(method):
    data = make_data()
    probabilities, chosen = fit(method, data)
    assert probabilities.shape == (40, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == data.labels[TEST]).mean() > 0.5
    again, chosen_again = fit(method, data)
    np.testing.assert_array_equal(again, probabilities)
    assert chosen_again == chosen


@pytest.mark.parametrize("method", [method for method in PROBES if method not in NO_LABELS])
def test_give_the_probability_of_each_label(method):
    labels = make_data().labels
    # The first label is the first class; the others overlap.
    targets = np.stack([labels == 0, labels != 1, labels != 2, labels == 2], axis=1).astype(np.float32)
    probabilities, _ = fit(method, make_data(labels=targets, num_classes=4))
    assert probabilities.shape == (40, 4)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    assert ((probabilities > 0.5) == (targets[TEST] > 0)).mean() > 0.6


@pytest.mark.parametrize("method", WEIGHTED)
def test_class_weights_call_the_rare_class_more_often(method):
    data = make_data()
    rare = np.concatenate(
        [np.flatnonzero(data.labels[ROWS[:80]] != 2), np.flatnonzero(data.labels[ROWS[:80]] == 2)[:8]]
    )
    rare = np.random.default_rng(0).permutation(ROWS[:80][rare])
    data = make_data(train=rare, folds=[(rare[:40], rare[40:])])
    plain, _ = fit(method, data)
    weighted, _ = fit(method, data, class_weighting="inverse")
    assert weighted[:, 2].mean() > plain[:, 2].mean()


def test_logistic_is_the_fit_at_the_chosen_strength():
    data = make_data()
    fitted = fit_logistic(data, strengths=(1e-2, 1.0, 1e-1))
    path = fit_path(data.features[data.train], data.labels[data.train], 3, (1.0, 1e-1, 1e-2))
    wanted = path.predict_proba(data.features[TEST])[path.strengths.index(fitted.chosen["strength"])]
    np.testing.assert_array_equal(fitted.classifier.predict_proba(data.features[TEST]), wanted)


@pytest.mark.parametrize("use_leave_one_out", [False, True])
def test_ridge_is_the_fit_of_least_squared_error(use_leave_one_out):
    data = make_data()
    strengths = (1e-3, 10.0, 1e-1, 1.0)
    if use_leave_one_out:
        errors = fit_ridge_path(data.features[data.train], data.labels[data.train], 3, strengths).leave_one_out_errors
    else:
        errors = np.zeros(4)
        for train, held_out in data.folds:
            path = fit_ridge_path(data.features[train], data.labels[train], 3, strengths)
            z = (data.features[held_out] - path.mean) / path.scale
            wrong = z @ path.weights + path.intercepts[:, None] - np.eye(3)[data.labels[held_out]]
            errors += np.square(wrong).mean(axis=(1, 2))
    fitted = fit_ridge(data, strengths=strengths, use_leave_one_out=use_leave_one_out)
    assert fitted.chosen == {"strength": strengths[int(errors.argmin())]}
    assert fitted.chosen["strength"] not in (1e-3, 10.0)  # or the test would say little


def test_the_temperature_of_nearest_means_is_of_least_held_out_log_loss():
    data = make_data()
    losses = np.zeros(3)
    for train, held_out in data.folds:
        for position, temperature in enumerate((0.01, 0.3, 10.0)):
            means = fit_class_means(
                data.features[train], data.labels[train], 3, metric="euclidean", temperature=temperature
            )
            right = means.predict_proba(data.features[held_out])[np.arange(20), data.labels[held_out]]
            losses[position] -= np.log(right).mean()
    fitted = fit_nearest_mean(data, metric="euclidean", temperatures=(0.01, 0.3, 10.0))
    assert fitted.chosen == {"temperature": (0.01, 0.3, 10.0)[int(losses.argmin())]}


def direct_votes(data, train, queries, count, temperature):
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(data.features[train].astype(np.float64))
    distances, nearest = search.kneighbors(data.features[queries].astype(np.float64))
    votes = np.exp((1 - distances) / temperature)
    shares = [
        [row[data.labels[train][near] == k].sum() for k in range(3)] for row, near in zip(votes, nearest, strict=True)
    ]
    return np.array(shares) / votes.sum(axis=1, keepdims=True)


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
    classifier, chosen = fit_knn(data, neighbours=counts, temperature=0.1)
    best = counts[int(np.argmax(hits))]
    assert chosen == {"neighbours": best}
    probabilities = classifier.predict_proba(data.features[TEST])
    np.testing.assert_allclose(probabilities, direct_votes(data, data.train, TEST, best, 0.1), atol=1e-5)


@pytest.mark.parametrize("neighbours", [(0, 5), (5, 61)])
def test_neighbours_that_are_not_there_are_refused(neighbours):
    with pytest.raises(ValueError, match="wanted 1 to 60, the training rows"):
        fit_knn(make_data(), neighbours=neighbours, temperature=0.07)


def plain_mlp(data, train, queries, recipe, stops):
    """AdamW step by step, from the same initial params."""
    width, rate, decay = recipe
    mean, scale = standardisation(data.features[train])
    rows, asked = (jnp.asarray((data.features[part] - mean) / scale) for part in (train, queries))
    right = jnp.asarray(np.eye(3, dtype=bool)[data.labels[train]])
    keys = jax.random.split(jax.random.key(data.seed))
    sizes = ((8, width), (width, 3))
    params = [jax.nn.initializers.lecun_normal()(key, size) for key, size in zip(keys, sizes, strict=True)]
    params = [params[0], jnp.zeros((1, width)), params[1], jnp.zeros((1, 3))]
    tx = optax.adamw(rate, weight_decay=decay, mask=[True, False, True, False])
    state = tx.init(params)

    def scores(params, rows):
        return jnp.maximum(rows @ params[0] + params[1], 0) @ params[2] + params[3]

    found = []
    for step in range(1, stops[-1] + 1):
        grads = jax.grad(lambda p: -jax.nn.log_softmax(scores(p, rows)).sum(where=right) / len(train))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if step in stops:
            found.append(np.asarray(jax.nn.softmax(scores(params, asked))))
    return found


def test_mlp_equals_plain_adamw_with_the_best_held_out_recipe():
    data = make_data()
    recipes, stops = [(3, 1e-2, 0.01), (3, 1e-2, 50.0)], (2, 4, 6)
    losses = np.zeros((2, 3))
    for train, held_out in data.folds:
        right = np.arange(len(held_out)), data.labels[held_out]
        for i, recipe in enumerate(recipes):
            losses[i] -= [np.log(found[right]).mean() for found in plain_mlp(data, train, held_out, recipe, stops)]
    best, stop = np.unravel_index(losses.argmin(), losses.shape)
    grid = {"widths": (3,), "learning_rates": (1e-2,), "weight_decays": (0.01, 50.0)}
    classifier, chosen = fit_mlp(data, **grid, num_steps=6, num_stops=3)
    width, rate, decay = recipes[best]
    assert chosen == {"width": width, "learning_rate": rate, "weight_decay": decay, "num_steps": stops[stop]}
    wanted = plain_mlp(data, data.train, TEST, recipes[best], stops)[stop]
    np.testing.assert_allclose(classifier.predict_proba(data.features[TEST]), wanted, atol=1e-6)


def test_networks_do_not_depend_on_those_trained_beside_them():
    data = make_data()
    recipes = [Recipe(3, 1e-2, 0.5), Recipe(5, 1e-3, 0.1)]
    (networks,) = train_grid(*data.of(data.train), 3, recipes, stops=(3,), seed=0)
    for network, recipe in zip(networks, recipes, strict=True):
        (wanted,) = plain_mlp(data, data.train, TEST, recipe, (3,))
        np.testing.assert_allclose(network.predict_proba(data.features[TEST]), wanted, atol=1e-6)


def test_stops_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is 7, wanted a multiple of num_stops, which is 3"):
        fit_mlp(make_data(), widths=(4,), learning_rates=(1e-3,), weight_decays=(0.1,), num_steps=7, num_stops=3)


@pytest.mark.parametrize("method", PROBES)
def test_no_folds_are_refused(method):
    with pytest.raises(ValueError, match="no folds to choose"):
        fit(method, make_data(folds=[]))
