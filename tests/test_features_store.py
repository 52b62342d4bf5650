import errno
import fcntl
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.features import shards, writing
from tljax.features import store as store_module
from tljax.features.shards import MappedRows
from tljax.features.store import FeatureStore, open_store
from tljax.features.writing import open_for_writing

NUM_ROWS = 23
INGREDIENTS = {"params": "abc", "preprocess": {"size": 224, "mean": (0.5, 0.25)}, "taps": ["a", "b"]}


def values(dtype="float16"):
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(NUM_ROWS, 3)).astype(jnp.dtype(dtype)),
        "b": rng.normal(size=(NUM_ROWS, 2, 5)).astype(jnp.dtype(dtype)),
    }


def opened(directory, ingredients=INGREDIENTS, dtype="float16", rows_per_batch=4):
    arrays = {name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for name, value in values(dtype).items()}
    return open_for_writing(directory, ingredients, num_rows=NUM_ROWS, rows_per_batch=rows_per_batch, arrays=arrays)


def write_missing(store: FeatureStore, dtype="float16") -> list[int]:
    written = store.missing_shards()
    for shard in written:
        first = shard * store.rows_per_shard
        rows = slice(first, first + store.shard_rows(shard))
        store.write(shard, {name: value[rows] for name, value in values(dtype).items()})
    return written


def make(directory, dtype="float16") -> FeatureStore:
    with opened(directory, dtype=dtype) as store:
        write_missing(store, dtype)
    return open_store(directory)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(writing, "BATCHES_PER_SHARD", 2)


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_come_back_as_they_were_written(tmp_path, dtype):
    store = make(tmp_path / "store", dtype)
    assert store.num_shards == 3
    assert store.is_complete
    assert store.verify() == []
    indices = np.array([22, 0, 7, 8, 7, 21, 15, 16])
    for name, value in values(dtype).items():
        assert store.read(name).dtype == value.dtype == store.rows(name, indices).dtype
        assert store.read(name).tobytes() == value.tobytes()
        assert store.rows(name, indices).tobytes() == value[indices].tobytes()
    assert store.rows("a", np.array([], np.int64)).shape == (0, 3)


def test_rows_of_a_store_larger_than_memory_are_the_same(tmp_path, monkeypatch):
    store = make(tmp_path)
    indices = np.random.default_rng(1).integers(NUM_ROWS, size=50)
    asked = []
    read_ahead = MappedRows.read_ahead
    monkeypatch.setattr(MappedRows, "read_ahead", lambda *row: [asked.append(row), read_ahead(*row)])
    store.rows("b", indices)
    assert asked == []
    monkeypatch.setattr(store_module, "memory_bytes", lambda: 0)
    np.testing.assert_array_equal(store.rows("b", indices), values()["b"][indices])
    assert len(asked) == 50


def test_shards_hold_whole_batches_of_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 100)
    with opened(tmp_path / "bytes") as store:
        assert store.rows_per_shard == 4  # two batches of 4 rows of b, 20 bytes each, would be 160
    monkeypatch.setattr(writing, "SHARD_BYTES", 10)
    with opened(tmp_path / "one") as store:
        assert store.rows_per_shard == 4


def test_an_index_outside_of_the_rows_is_an_error(tmp_path):
    store = make(tmp_path)
    for index in (-1, NUM_ROWS):
        with pytest.raises(IndexError, match="which has 0 to 22"):
            store.rows("a", np.array([3, index]))
    with pytest.raises(ValueError, match="no array 'c'; it has a, b"):
        store.read("c")


def test_a_store_without_a_shard_cannot_be_read_and_is_completed(tmp_path):
    with opened(tmp_path) as store:
        first = {name: value[:8] for name, value in values().items()}
        store.write(0, first)
    store = open_store(tmp_path)
    assert store.missing_shards() == [1, 2]
    message = r"incomplete, 2 of 3 shards are not whole: a.00001.npy b.00001.npy not finished; extract again"
    with pytest.raises(ValueError, match=message):
        store.rows("a", np.array([0]))
    with pytest.raises(ValueError, match="incomplete"):
        store.verify()
    with opened(tmp_path) as store:
        assert write_missing(store) == [1, 2]
        np.testing.assert_array_equal(store.read("b"), values()["b"])


@pytest.mark.parametrize("size", [0, 130, None])
def test_a_short_or_missing_file_is_named_and_its_shard_made_again(tmp_path, size):
    make(tmp_path)
    path = tmp_path / "b.00001.npy"
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    problem = "b.00001.npy missing" if size is None else f"b.00001.npy of {size} bytes, wanted 288"
    with pytest.raises(ValueError, match=problem):
        open_store(tmp_path).read("a")
    with opened(tmp_path) as store:
        assert write_missing(store) == [1]
    assert open_store(tmp_path).verify() == []


@pytest.mark.parametrize("position", [0, -1])
def test_verify_names_a_file_with_a_changed_byte(tmp_path, position):
    store = make(tmp_path)
    change_byte(tmp_path / "a.00002.npy", position)
    assert store.verify() == ["a.00002.npy"]
    (tmp_path / "a.00002.npy").unlink()
    with opened(tmp_path) as store:
        assert write_missing(store) == [2]
        assert store.verify() == []


@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_byte_is_refused_when_its_shard_is_first_read(tmp_path, position):
    make(tmp_path)
    change_byte(tmp_path / "a.00002.npy", position)
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.rows("a", np.array([3, 15])), values()["a"][[3, 15]])
    for read in (lambda: store.rows("a", np.array([3, 16])), lambda: store.read("a")):
        with pytest.raises(
            ValueError, match="a.00002.npy is damaged: its checksum is 0x.*delete this file and extract"
        ):
            read()
    np.testing.assert_array_equal(store.read("b"), values()["b"])


def test_shards_that_are_not_held_open_or_in_memory_are_read_the_same(tmp_path, monkeypatch):
    store = make(tmp_path)
    monkeypatch.setattr(shards, "OPEN_FILES", 1)
    monkeypatch.setattr(store_module, "RESIDENT_BYTES", 0)
    forgotten = []
    forget = MappedRows.forget
    monkeypatch.setattr(MappedRows, "forget", lambda mapped: [forgotten.append(mapped), forget(mapped)])
    indices = np.random.default_rng(1).integers(NUM_ROWS, size=50)
    for name, value in values().items():
        np.testing.assert_array_equal(store.rows(name, indices), value[indices])
    assert len(forgotten) == 2 * 3
    assert len(store._mapped._mapped) == 1


def test_a_shard_written_again_is_read_anew(tmp_path):
    with opened(tmp_path) as store:
        write_missing(store)
        store.read("a")
        store.write(1, {name: value[8:16] + value.dtype.type(1) for name, value in values().items()})
        np.testing.assert_array_equal(store.read("a")[8:16], values()["a"][8:16] + np.float16(1))


def test_a_store_of_something_else_is_refused_with_the_differences(tmp_path):
    make(tmp_path)
    other = {"params": "abd", "preprocess": {"size": 112, "mean": (0.5, 0.25)}, "data": 1}
    with pytest.raises(ValueError, match="made from something else") as caught:
        open_store(tmp_path, other)
    assert str(caught.value).splitlines()[1:] == [
        "  data: 'absent' there, 1 now",
        "  params: 'abc' there, 'abd' now",
        "  preprocess.size: 224 there, 112 now",
        "  taps: ['a', 'b'] there, 'absent' now",
    ]
    with pytest.raises(ValueError, match="made from something else"), opened(tmp_path, other):
        pass
    assert open_store(tmp_path, INGREDIENTS).is_complete


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no feature store in {tmp_path}"):
        open_store(tmp_path)


def test_arrays_of_an_unknown_origin_are_not_taken_over(tmp_path):
    make(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ValueError, match="arrays of an unknown origin"), opened(tmp_path):
        pass


def test_a_store_is_finished_with_the_batches_it_was_begun_with(tmp_path):
    with opened(tmp_path):
        pass
    with pytest.raises(ValueError, match="begun with 4 rows a batch, got 8"), opened(tmp_path, rows_per_batch=8):
        pass
    make(tmp_path)
    with opened(tmp_path, rows_per_batch=8) as store:
        assert store.is_complete


def test_a_value_beyond_the_dtype_is_refused_with_the_fix(tmp_path):
    large = {name: value[:8].astype(np.float32) for name, value in values().items()}
    large["b"][3, 1, 2] = -7e4
    with opened(tmp_path) as store:
        with pytest.raises(ValueError, match=r"'b' in shard 0 of .* reach 7e\+04, beyond float16.*dtype='float32'"):
            store.write(0, large)
        large["b"][3, 1, 2] = np.nan
        with pytest.raises(ValueError, match=r"1 of 80 values of 'b' .* are not finite"):
            store.write(0, large)
        assert store.missing_shards() == [0, 1, 2]
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("failing_call", range(3))
def test_a_full_disk_names_the_file_and_leaves_no_part_of_a_shard(tmp_path, monkeypatch, function, failing_call):
    calls = []
    real = getattr(os, function)

    def full(*arguments):
        calls.append(arguments)
        # A write calls fsync twice, for the file and for its folder.
        if len(calls) > failing_call * (2 if function == "fsync" else 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    failing_file = ["a.00001.npy", "b.00001.npy", "00001.json"][failing_call]
    with opened(tmp_path) as store:
        store.write(0, {name: value[:8] for name, value in values().items()})
        monkeypatch.setattr(os, function, full)
        with pytest.raises(OSError, match=f"cannot write {tmp_path / failing_file}: No space left"):
            store.write(1, {name: value[8:16] for name, value in values().items()})
        monkeypatch.undo()
        assert store.missing_shards() == [1, 2]
    assert open_store(tmp_path).missing_shards() == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_no_checksum_stands_beside_an_array_it_was_not_made_from(tmp_path, monkeypatch):
    make(tmp_path)
    os.truncate(tmp_path / "b.00001.npy", 200)
    with opened(tmp_path) as store:
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: real(a, b) if "b.00001" not in str(b) else _stop())
        other = {name: value[8:16] + value.dtype.type(1) for name, value in values().items()}
        with pytest.raises(KeyboardInterrupt):
            store.write(1, other)
    monkeypatch.undo()
    assert open_store(tmp_path).missing_shards() == [1]
    assert not (tmp_path / "00001.json").exists()


def _stop():
    raise KeyboardInterrupt


def test_files_left_by_a_killed_writer_are_removed(tmp_path):
    make(tmp_path)
    stray = tmp_path / ".a.00001.npy.4711.tmp"
    stray.write_bytes(b"part")
    open_store(tmp_path)
    assert stray.exists()  # it may be that of a writer at work
    with opened(tmp_path):
        assert not stray.exists()


def test_one_writer_at_a_time(tmp_path):
    with opened(tmp_path), open(tmp_path / writing.LOCK) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / writing.LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
