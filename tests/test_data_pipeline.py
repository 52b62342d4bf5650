"""The stream: a function of (seed, step), each epoch a permutation, padding marked."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.noted import noted
from tljax.data.augment import Augment, dihedral
from tljax.data.decode import decode_image
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.data.sampling import epoch_indices, epoch_views
from tljax.data.share import Share
from tljax.data.sources import open_source
from tljax.data.table import open_table
from tljax.preprocess import Preprocess

PREPROCESS = Preprocess(size=8)
INDICES = np.array([9, 0, 3, 4, 7, 1, 8])
ALL_CHANGES = Augment(views=8, crop_scale=(0.2, 1.0), trivial_augment=True, erasing_probability=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = root / ("even" if number < 4 else "odd")
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (12, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_source("folder", root)


def expected_image(source, index, view):
    example = source[index]
    return dihedral(PREPROCESS(decode_image(example["image"], example["name"])), view)


def take(source, count, **options):
    arguments: dict[str, Any] = {"batch_size": 4, "seed": 3} | options
    return list(islice(training_batches(source, INDICES, PREPROCESS, **arguments), count))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_ordered_batches_are_in_order_and_padded(source):
    batches = list(ordered_batches(source, INDICES, PREPROCESS, 4, view=5))
    assert [set(batch) for batch in batches] == [{"image", "index", "mask"}] * 2
    image, index, mask = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "index", "mask"))
    assert (image.dtype, index.dtype, mask.dtype) == (np.uint8, np.int64, np.bool_)
    np.testing.assert_array_equal(mask, [True] * 7 + [False])
    np.testing.assert_array_equal(index[mask], INDICES)
    np.testing.assert_array_equal(image[mask], np.stack([expected_image(source, i, 5) for i in INDICES]))
    assert not image[~mask].any()


def test_training_images_and_labels_belong_to_their_index_and_view(source):
    for batch in take(source, 4):
        assert {key: value.dtype for key, value in batch.items()} == {
            "image": np.uint8,
            "label": np.int32,
            "index": np.int64,
            "view": np.int64,
        }
        np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])
        images = [expected_image(source, *pair) for pair in zip(batch["index"], batch["view"], strict=True)]
        np.testing.assert_array_equal(batch["image"], np.stack(images))


def test_targets_take_the_place_of_labels(source, tmp_path):
    rows = [f"{file},{index / 10},{1 - index / 10}" for index, file in enumerate(source.files)]
    (tmp_path / "shares.csv").write_text("\n".join(["file,x,y", *rows]))
    table = open_table(
        source.root, path=tmp_path / "shares.csv", file_column="file", kind="soft", label_columns=("x", "y")
    )
    assert table.targets is not None
    for batch, of_folder in zip(take(table, 3), take(source, 3), strict=True):
        assert batch["label"].dtype == np.float32
        np.testing.assert_array_equal(batch["label"], table.targets[batch["index"]])
        np.testing.assert_array_equal(batch["image"], of_folder["image"])


def test_every_epoch_is_another_permutation(source):
    stream = np.concatenate([batch["index"] for batch in take(source, 14)])
    epochs = stream.reshape(8, 7)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.sort(INDICES), (8, 1)))
    assert len(np.unique(epochs, axis=0)) > 5


def test_views_are_drawn_anew_each_epoch_from_the_first_ones(source):
    batches = take(source, 70, views=4)
    index, view = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "view"))
    for position in INDICES:
        np.testing.assert_array_equal(np.unique(view[index == position]), np.arange(4))


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_the_stream_of_images_is_that_of_stored_features(source, sampling):
    # So that a run from stored activations is the run from images: `prefix_batches` reads the same epochs.
    batches = take(source, 14, views=4, sampling=sampling)
    index, view = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "view"))
    epochs = [epoch_indices(INDICES, source.labels, 3, epoch, sampling=sampling) for epoch in range(8)]
    np.testing.assert_array_equal(index, np.concatenate(epochs))
    np.testing.assert_array_equal(view, np.concatenate([epoch_views(7, 3, epoch, views=4) for epoch in range(8)]))


def test_augment_of_views_alone_is_the_stream_of_views(source):
    assert_same(take(source, 4, augment=Augment(views=4)), take(source, 4, views=4))


def test_augmented_images_differ_each_time_and_keep_their_labels(source):
    # Views are drawn as they are without other changes.
    batches, plain = take(source, 14, augment=ALL_CHANGES), take(source, 14)
    for batch, other in zip(batches, plain, strict=True):
        for key in ("index", "view", "label"):
            np.testing.assert_array_equal(batch[key], other[key])
        assert (batch["image"].shape, batch["image"].dtype) == ((4, 8, 8, 3), np.uint8)
    # Not all 56: a translation by 8 pixels or more leaves black only.
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) > 45


def test_an_image_is_changed_anew_each_time_it_comes(source):
    batches = take(source, 14, augment=Augment(crop_scale=(0.2, 1.0), erasing_probability=1.0))
    images, index = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "index"))
    for position in INDICES:
        assert len({image.tobytes() for image in images[index == position]}) == 8


def test_images_need_not_be_square(source):
    preprocess = Preprocess(size=(6, 8))
    augment = Augment(views=4, crop_scale=(0.5, 1.0), trivial_augment=True)
    batch = next(training_batches(source, INDICES, preprocess, 4, 3, augment=augment))
    assert batch["image"].shape == (4, 6, 8, 3)


@pytest.mark.parametrize("options", [{}, {"augment": ALL_CHANGES, "sampling": "class_balanced"}])
@pytest.mark.parametrize("start_step", [1, 5])
def test_resumed_stream_is_the_tail_of_the_whole(source, start_step, options):
    assert_same(take(source, 8, **options)[start_step:], take(source, 8 - start_step, start_step=start_step, **options))


@pytest.mark.parametrize("options", [{}, {"augment": ALL_CHANGES, "sampling": "class_balanced"}])
def test_stream_is_the_same_with_worker_processes(source, options):
    alone = take(source, 5, start_step=2, **options)
    assert_same(alone, take(source, 5, start_step=2, num_workers=2, **options))


def together(parts):
    """The batches of all processes put together."""
    return [
        {key: np.concatenate([part[key] for part in of_step]) for key in of_step[0]}
        for of_step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"augment": ALL_CHANGES, "sampling": "class_balanced", "start_step": 3}])
def test_shares_of_a_step_are_the_batch_of_one_process(source, count, options):
    parts = [take(source, 6, share=Share(index=index, count=count), **options) for index in range(count)]
    assert {len(batch["image"]) for part in parts for batch in part} == {4 // count}
    assert_same(together(parts), take(source, 6, **options))


def test_shares_are_the_same_with_worker_processes(source):
    options = {"augment": ALL_CHANGES, "sampling": "class_balanced", "start_step": 3}
    parts = [take(source, 3, share=Share(index=index, count=2), num_workers=2, **options) for index in range(2)]
    assert_same(together(parts), take(source, 3, **options))


def test_a_process_reads_its_share_alone(source):
    watched = noted(source)
    batches = take(watched, 2, share=Share(index=1, count=2))
    # Batches that follow are read ahead.
    wanted = np.concatenate([batch["index"][2:] for batch in take(source, 10)])
    assert sorted(watched.read) == sorted(wanted[: len(watched.read)])
    assert 4 <= len(watched.read) <= 2 * (len(batches) + 4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ordered_shares_are_the_padded_batches_of_one_process(source, count):
    # 7 images: of the last batch, the fourth process has padding alone.
    parts = [
        list(ordered_batches(source, INDICES, PREPROCESS, 4, view=5, share=Share(index=index, count=count)))
        for index in range(count)
    ]
    assert_same(together(parts), list(ordered_batches(source, INDICES, PREPROCESS, 4, view=5)))


def test_neighbouring_seeds_share_no_epoch(source):
    def epochs(seed):
        index = np.concatenate([batch["index"] for batch in take(source, 14, seed=seed)])
        return {tuple(epoch) for epoch in index.reshape(8, 7)}

    assert not epochs(3) & epochs(4)


def test_arguments_out_of_range_are_named(source):
    with pytest.raises(ValueError, match="indices are from 0 to 10, wanted positions from 0 to 9"):
        ordered_batches(source, np.array([0, 10]), PREPROCESS, 4)
    with pytest.raises(ValueError, match="indices are empty"):
        ordered_batches(source, np.array([], np.int64), PREPROCESS, 4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        training_batches(source, INDICES, PREPROCESS, 0, 3)
    with pytest.raises(ValueError, match="views is 9"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, views=9)
    with pytest.raises(ValueError, match="start_step is -1"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, start_step=-1)
    with pytest.raises(ValueError, match="num_workers is -1"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, num_workers=-1)
    with pytest.raises(ValueError, match="batch_size is 4, which 3 processes cannot share evenly; wanted a multiple"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, share=Share(index=0, count=3))
    with pytest.raises(ValueError, match="share 2 of 2"):
        Share(index=2, count=2)
    with pytest.raises(ValueError, match="views is 4 and augment has views 8: give one of them"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, views=4, augment=ALL_CHANGES)
    with pytest.raises(ValueError, match="no sampling 'balanced'"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, sampling="balanced")


def test_damaged_image_stops_the_stream_by_name(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cat/broken\.png"):
        next(ordered_batches(open_source("folder", tmp_path), np.array([0]), PREPROCESS, 1))
