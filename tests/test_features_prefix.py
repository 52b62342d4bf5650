import itertools
from functools import partial

import jax
import numpy as np
import pytest

from tests.test_features_extract import NET, PREPROCESS, draw_arrays, pixels, write_images
from tljax.data.sampling import epoch_indices
from tljax.data.share import Share
from tljax.data.splits import hashed_seed
from tljax.features import build_prefix, feature_spec, prefix_batches, prefix_spec
from tljax.features.prefix import ordered_prefix_batches
from tljax.features.store import FeatureStore

NUM_IMAGES = 10
VIEWS = 4
INDICES = np.array([9, 1, 2, 4, 7, 5, 8])
LABELS = np.arange(100, 100 + NUM_IMAGES, dtype=np.int32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def store(source, tmp_path_factory) -> FeatureStore:
    directory = tmp_path_factory.mktemp("store")
    return build_prefix(
        NET,
        *draw_arrays(NET),
        source,
        PREPROCESS,
        directory,
        boundary="block_02",
        views=VIEWS,
        dtype="float32",
        batch_size=4,
    )


def take(store, count, *, seed=3, batch_size=3, indices=INDICES, labels=LABELS, **options):
    stream = prefix_batches(store, indices, labels, batch_size, seed, **{"views": VIEWS, **options})
    return list(itertools.islice(stream, count))


def column(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def test_the_rest_of_the_net_runs_on_the_bank(store, source):
    params, stats = draw_arrays(NET)
    apply = jax.jit(partial(NET.apply, params, stats), static_argnames=("start", "stop"))
    assert list(store.arrays) == ["block_01"]
    for view in range(VIEWS):
        activations = store.read("block_01")[view::VIEWS]
        wanted, _ = apply(pixels(source, view), stop="block_02")
        # Batches of another size, so sums in another order.
        np.testing.assert_allclose(activations, wanted, atol=1e-5)
        whole, _ = apply(pixels(source, view))
        rest, _ = apply(jax.numpy.asarray(activations), start="block_02")
        np.testing.assert_allclose(rest, whole, atol=1e-5)


def test_the_bank_is_extraction_of_one_whole_stage(source):
    given = (NET, *draw_arrays(NET), source, PREPROCESS)
    spec = prefix_spec(*given, boundary=3, views=VIEWS, dtype="float32")
    assert spec == feature_spec(*given, taps=("block_01",), pooling="grid", views=VIEWS, dtype="float32")
    # A tuned norm or head changes nothing in it.
    assert prefix_spec(*given, boundary="head")["taps"] == ["norm"]
    with pytest.raises(ValueError, match="no stage is before 'embed'"):
        prefix_spec(*given, boundary="embed")


@pytest.mark.parametrize("views", [1, 2, VIEWS])
def test_batches_hold_the_rows_and_labels_of_their_images(store, views):
    batches = take(store, 9, views=views)
    for batch in batches:
        assert batch["activation"].shape == (3, 17, 16)
        np.testing.assert_array_equal(batch["label"], 100 + batch["index"])
        rows = store.read("block_01")[batch["index"] * VIEWS + batch["view"]]
        np.testing.assert_array_equal(batch["activation"], rows)
    assert set(column(batches, "view").tolist()) == set(range(views))


@pytest.mark.parametrize("batch_size", [3, 7, 20])
def test_each_epoch_is_a_new_permutation_of_the_indices(store, batch_size):
    images = column(take(store, 60 // batch_size + 1, batch_size=batch_size), "index")
    epochs = images[: 8 * len(INDICES)].reshape(8, len(INDICES))
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(INDICES.tolist())
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 8
    # Batches are cuts of one stream, whatever their size.
    np.testing.assert_array_equal(images[:60], column(take(store, 60, batch_size=1), "index"))


@pytest.mark.parametrize("start_step", [1, 2, 5, 11])
def test_a_stream_begins_at_any_step(store, start_step):
    whole, rest = take(store, 14), take(store, 14 - start_step, start_step=start_step)
    for name in ("activation", "label", "index", "view"):
        np.testing.assert_array_equal(column(whole[start_step:], name), column(rest, name))


def test_the_stream_is_that_of_earlier_versions(store):
    batches = take(store, 14, sampling="uniform")
    for epoch, (images, views) in enumerate(
        zip(*(column(batches, name).reshape(6, 7) for name in ("index", "view")), strict=True)
    ):
        order = np.random.default_rng(hashed_seed(3, f"order of epoch {epoch}"))
        np.testing.assert_array_equal(images, order.permutation(INDICES))
        drawn = np.random.default_rng(hashed_seed(3, f"views of epoch {epoch}")).integers(VIEWS, size=7)
        np.testing.assert_array_equal(views, drawn)


@pytest.mark.parametrize("start_step", [0, 4])
def test_class_balanced_epochs_follow_each_other(store, start_step):
    labels = np.array([0] * 8 + [1] * 2, np.int32)
    options = {"labels": labels, "sampling": "class_balanced"}
    batches = take(store, 14 - start_step, start_step=start_step, **options)
    epochs = [epoch_indices(INDICES, labels, 3, epoch, sampling="class_balanced") for epoch in range(6)]
    np.testing.assert_array_equal(column(batches, "index"), np.concatenate(epochs)[3 * start_step :])
    np.testing.assert_array_equal(column(batches, "label"), labels[column(batches, "index")])
    np.testing.assert_array_equal(column(batches, "view"), column(take(store, 14)[start_step:], "view"))


def test_neighbouring_seeds_share_no_epoch(store):
    def epochs(seed):
        return {tuple(batch["index"].tolist()) for batch in take(store, 8, seed=seed, batch_size=len(INDICES))}

    assert not epochs(3) & epochs(4)
    assert not np.array_equal(column(take(store, 9, seed=3), "view"), column(take(store, 9, seed=4), "view"))


def test_rows_keep_the_dtype_of_the_store(source, tmp_path):
    store = build_prefix(NET, *draw_arrays(NET), source, PREPROCESS, tmp_path, boundary="block_00", dtype="bfloat16")
    assert take(store, 1, views=1)[0]["activation"].dtype == jax.numpy.bfloat16


def test_wrong_arguments_are_named(store):
    with pytest.raises(ValueError, match="views is 5, wanted 1 to 4"):
        take(store, 1, views=5)
    with pytest.raises(ValueError, match="no indices"):
        take(store, 1, indices=np.array([], np.int64))
    with pytest.raises(ValueError, match="got 3 labels for the 10 images"):
        prefix_batches(store, INDICES, LABELS[:3], 2, 0)
    with pytest.raises(ValueError, match="no sampling 'balanced'"):
        prefix_batches(store, INDICES, LABELS, 2, 0, sampling="balanced")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shares_of_a_step_are_the_batch_of_one_process(store, count):
    def read(share):
        batches = take(store, 5, batch_size=4, start_step=2, sampling="class_balanced", share=share)
        return batches + list(ordered_prefix_batches(store, INDICES, 4, share=share))

    whole = read(Share())
    parts = [read(Share(index=index, count=count)) for index in range(count)]
    for of_step, batch in zip(zip(*parts, strict=True), whole, strict=True):
        for key, values in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in of_step]), values, err_msg=key)
    assert {len(batch["index"]) for part in parts for batch in part} == {4 // count}
    assert [batch["mask"].sum() for batch in whole[5:]] == [4, 3]
