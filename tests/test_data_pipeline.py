"""The stream: a function of (seed, step), each epoch a permutation, padding marked."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from tljax.data.augment import dihedral
from tljax.data.decode import decode_image
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.data.sources import open_source
from tljax.preprocess import Preprocess

PREPROCESS = Preprocess(size=8)
INDICES = np.array([9, 0, 3, 4, 7, 1, 8])


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
    arguments = {"batch_size": 4, "seed": 3} | options
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


@pytest.mark.parametrize("start_step", [1, 5])
def test_resumed_stream_is_the_tail_of_the_whole(source, start_step):
    assert_same(take(source, 8)[start_step:], take(source, 8 - start_step, start_step=start_step))


def test_stream_is_the_same_with_a_worker_process(source):
    assert_same(take(source, 4, start_step=2), take(source, 4, start_step=2, num_workers=1))


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
    with pytest.raises(ValueError, match="views 9"):
        training_batches(source, INDICES, PREPROCESS, 4, 3, views=9)


def test_damaged_image_stops_the_stream_by_name(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cat/broken\.png"):
        next(ordered_batches(open_source("folder", tmp_path), np.array([0]), PREPROCESS, 1))
