"""The cache of decoded images: the same pixels as without, whatever happens to it."""

import errno
import logging
import os
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from tests.kill import kill_and_finish
from tests.noted import noted
from tljax.data import image_cache
from tljax.data.augment import Augment, Shrink
from tljax.data.cache_files import RECORD, record_place
from tljax.data.decode import decode_image
from tljax.data.image_cache import CacheRoom, ImageCache, open_image_cache
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.data.sources import open_source
from tljax.preprocess import Preprocess

NUM_IMAGES = 12
PREPROCESS = Preprocess(size=8)
CROPS = Augment(views=2, crop_scale=(0.3, 1.0), erasing_probability=0.5)
SMALL = Augment(views=2, crop_scale=(0.3, 1.0), short_side=10)
FLIPS = Augment(views=2, erasing_probability=0.5)
INDICES = np.arange(NUM_IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = root / ("even" if number % 2 == 0 else "odd") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        # Of different sizes, as photographs are.
        pixels = generator.integers(0, 256, (20 + number, 31 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def room(directory, budget_bytes=10**9):
    return CacheRoom(directory=directory, budget_bytes=budget_bytes)


def read(source, augment=CROPS, steps=9, **options):
    stream = training_batches(source, INDICES, PREPROCESS, 4, 3, augment=augment, **options)
    batches = list(islice(stream, steps))
    stream.close()
    return np.stack([batch["image"] for batch in batches])


def fill(folder, directory, **options):
    """Decode every image into the cache; return it."""
    source = noted(open_source("folder", folder))
    list(ordered_batches(source, INDICES, PREPROCESS, 4, room=room(directory, **options)))
    return open_image_cache(room(directory, **options), source, PREPROCESS)


def prepared(folder, index):
    example = open_source("folder", folder)[index]
    return PREPROCESS(decode_image(example["image"], ""))


def assert_right(cache, folder, missing=()):
    """Every image is what was prepared, or is not there."""
    for index in range(NUM_IMAGES):
        image = cache.get(index)
        if index in missing:
            assert image is None
        else:
            np.testing.assert_array_equal(image, prepared(folder, index))


@pytest.mark.parametrize("augment", [CROPS, SMALL, FLIPS])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pixels_are_those_without_a_cache(folder, tmp_path, augment, num_workers):
    source = open_source("folder", folder)
    plain = read(source, augment)
    for _ in range(2):
        cached = read(source, augment, room=room(tmp_path), num_workers=num_workers)
        np.testing.assert_array_equal(cached, plain)


@pytest.mark.parametrize("augment", [CROPS, SMALL, FLIPS])
def test_each_image_is_decoded_once_by_all_runs(folder, tmp_path, augment):
    source = noted(open_source("folder", folder))
    read(source, augment, room=room(tmp_path))
    assert set(source.read) == set(INDICES)
    # Two threads may be at the same image, at the end of one epoch and the start of the next.
    assert len(source.read) <= NUM_IMAGES + 2
    other = noted(open_source("folder", folder))
    read(other, augment, room=room(tmp_path))
    assert not other.read


def test_ordered_batches_take_what_training_has_kept(folder, tmp_path):
    source = noted(open_source("folder", folder))
    read(source, FLIPS, room=room(tmp_path))
    before = len(source.read)
    cached = list(ordered_batches(source, INDICES, PREPROCESS, 5, room=room(tmp_path)))
    assert len(source.read) == before
    for batch, plain in zip(cached, ordered_batches(source, INDICES, PREPROCESS, 5), strict=True):
        np.testing.assert_array_equal(batch["image"], plain["image"])


def test_workers_share_what_each_has_decoded(folder, tmp_path):
    read(open_source("folder", folder), FLIPS, room=room(tmp_path), num_workers=2)
    cache = open_image_cache(room(tmp_path), open_source("folder", folder), PREPROCESS)
    assert_right(cache, folder)
    # Of 36 images that were shown: two workers may be at batches with the same ones.
    assert cache.used_bytes <= (NUM_IMAGES + 2 * 4) * 8 * 8 * 3


def test_other_images_and_preparations_have_folders_of_their_own(folder, tmp_path, monkeypatch):
    source = open_source("folder", folder)
    given = [(source, PREPROCESS), (source, None), (source, Preprocess(size=9))]
    given += [(source, Shrink(short_side=side, interpolation="bilinear")) for side in (9, 10)]
    folders = [open_image_cache(room(tmp_path), *each).directory for each in given]
    monkeypatch.setattr(image_cache, "describe_decoder", lambda: {"version": "2"})
    folders.append(open_image_cache(room(tmp_path), *given[0]).directory)
    assert len(set(folders)) == 6


def test_the_budget_holds_and_what_is_beyond_it_is_decoded(folder, tmp_path):
    size = 8 * 8 * 3
    cache = fill(folder, tmp_path, budget_bytes=5 * size + size // 2)
    assert cache.used_bytes == 5 * size
    there = [index for index in range(NUM_IMAGES) if cache.get(index) is not None]
    assert len(there) == 5
    source = open_source("folder", folder)
    cached = read(source, FLIPS, room=room(tmp_path, 5 * size))
    np.testing.assert_array_equal(cached, read(source, FLIPS))
    pixels = cache.directory / "pixels.bin"
    assert pixels.stat().st_blocks * 512 <= 5 * size + 4096


@pytest.mark.parametrize("where", [0, 8, 12, 16, 20, 24])
def test_a_record_that_is_damaged_counts_as_missing(folder, tmp_path, where):
    cache = fill(folder, tmp_path)
    flip(cache.directory / "index.bin", record_place(3) + where)
    again = open_image_cache(room(tmp_path), open_source("folder", folder), PREPROCESS)
    assert_right(again, folder, missing=[3])


def test_a_record_of_another_image_counts_as_missing(folder, tmp_path):
    cache = fill(folder, tmp_path)
    path = cache.directory / "index.bin"
    data = bytearray(path.read_bytes())
    one, other = record_place(3), record_place(4)
    data[one : one + RECORD.size], data[other : other + RECORD.size] = (
        data[other : other + RECORD.size], data[one : one + RECORD.size],
    )  # fmt: skip
    path.write_bytes(data)
    again = open_image_cache(room(tmp_path), open_source("folder", folder), PREPROCESS)
    assert_right(again, folder, missing=[3, 4])


def test_pixels_that_are_damaged_or_lost_are_decoded_again(folder, tmp_path):
    cache = fill(folder, tmp_path)
    path = cache.directory / "pixels.bin"
    packed = os.pread(cache._files.index, RECORD.size, record_place(5))
    flip(path, RECORD.unpack(packed)[0] + 100)
    again = open_image_cache(room(tmp_path), open_source("folder", folder), PREPROCESS)
    assert_right(again, folder, missing=[5])
    # What a loss of power can leave: records on the disk, and not the pixels that they point to.
    path.write_bytes(b"")
    source = noted(open_source("folder", folder))
    images = read(source, FLIPS, room=room(tmp_path))
    np.testing.assert_array_equal(images, read(source, FLIPS))
    repaired = open_image_cache(room(tmp_path), open_source("folder", folder), PREPROCESS)
    assert_right(repaired, folder)


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize("part", ["pixels", "index"])
def test_a_full_disk_is_said_once_and_stops_nothing(folder, tmp_path, monkeypatch, caplog, part):
    write = image_cache.write_whole
    source = open_source("folder", folder)
    open_image_cache(room(tmp_path), source, PREPROCESS)
    left = [4]

    def failing(descriptor, data, offset):
        if isinstance(data, bytes) == (part == "index"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data, offset)

    monkeypatch.setattr(image_cache, "write_whole", failing)
    with caplog.at_level(logging.WARNING):
        cached = read(source, FLIPS, room=room(tmp_path))
    np.testing.assert_array_equal(cached, read(source, FLIPS))
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in message
    assert "No space left on device" in message
    assert "lower execution.image_cache_gb" in message
    # There is room again: the next run goes on.
    monkeypatch.setattr(image_cache, "write_whole", write)
    assert_right(fill(folder, tmp_path), folder)


def test_two_processes_that_find_the_disk_full_say_so_once(folder, tmp_path, monkeypatch, caplog):
    source = open_source("folder", folder)
    first, second = (open_image_cache(room(tmp_path), source, PREPROCESS) for _ in range(2))
    pixels = prepared(folder, 0)

    def failing(descriptor, data, offset):
        # While the first writes, the second has taken room already.
        if descriptor == first._files.pixels:
            second.put(1, pixels)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache, "write_whole", failing)
    with caplog.at_level(logging.WARNING):
        first.put(0, pixels)
        # Whoever comes later does not even try.
        another(first).put(2, pixels)
    assert len(caplog.records) == 1


def another(cache):
    return ImageCache(directory=cache.directory, num_images=cache.num_images, budget_bytes=cache.budget_bytes)


def test_other_errors_of_the_disk_are_raised(folder, tmp_path, monkeypatch):
    def failing(descriptor, data, offset):
        raise OSError(errno.EIO, "Input/output error")

    source = open_source("folder", folder)
    open_image_cache(room(tmp_path), source, PREPROCESS)
    monkeypatch.setattr(image_cache, "write_whole", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read(source, FLIPS, room=room(tmp_path))


def write_images(ready, directory):
    """Keep images that say which they are, so that any wrong pixel shows."""
    cache = ImageCache(directory=directory, num_images=NUM_IMAGES * 20, budget_bytes=10**9)
    cache.begin()
    for index in range(NUM_IMAGES * 20):
        if cache.get(index) is None:
            cache.put(index, of(index))
            ready()


def of(index):
    return np.random.default_rng(index).integers(0, 256, (100, 80 + index % 7, 3), dtype=np.uint8)


def test_a_killed_writer_leaves_no_wrong_pixel(tmp_path):
    kills = kill_and_finish(write_images, tmp_path, kills=6, within_s=0.05, seed=0)
    cache = ImageCache(directory=tmp_path, num_images=NUM_IMAGES * 20, budget_bytes=10**9)
    for index in range(NUM_IMAGES * 20):
        np.testing.assert_array_equal(cache.get(index), of(index))
    # Of each killed writer, the room of one image at most is lost.
    sizes = sum(-(-of(index).nbytes // 64) * 64 for index in range(NUM_IMAGES * 20))
    assert cache.used_bytes <= sizes + kills * 100 * 90 * 3


def test_functions_without_a_name_have_no_cache(folder, tmp_path):
    source = open_source("folder", folder)
    with pytest.raises(ValueError, match="images are kept under a name that a Preprocess gives, got function"):
        training_batches(source, INDICES, lambda image: image[:8, :8], 4, 3, views=2, room=room(tmp_path))
