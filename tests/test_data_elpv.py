"""ELPV as built from its wheel: counts, order, bytes, blocks, and refusals."""

import importlib.util
import json
import pickle
import sys

import numpy as np
import pytest

from tljax.data.datasets.elpv import elpv_source, find_files, module_blocks
from tljax.data.decode import decode_image
from tljax.data.sources import Source, open_source
from tljax.data.splits import combine_strata, grouped_split, stratified_split


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("elpv")


@pytest.fixture(scope="module")
def source(root):
    return open_source("elpv", root, task="binary")


@pytest.fixture(scope="module")
def rows():
    return [line.split() for line in (find_files() / "labels.csv").read_text().splitlines()]


def test_examples_stand_in_the_order_of_the_labels_file(source, rows):
    assert isinstance(source, Source)
    assert len(source) == len(rows) == 2624
    names, probabilities, types = zip(*rows, strict=True)
    np.testing.assert_array_equal(source.columns["probability"], np.array(probabilities, np.float32))
    np.testing.assert_array_equal(source.columns["cell_type"], types)
    for index in range(0, 2624, 97):
        expected = {"image": (find_files() / names[index]).read_bytes(), "name": names[index]}
        assert source[index] == expected
    assert decode_image(source[0]["image"], "x").shape == (300, 300, 3)


def test_binary_task_has_the_published_counts(source):
    assert source.class_names == ("functional", "defective")
    np.testing.assert_array_equal(np.bincount(source.labels), [1803, 821])
    np.testing.assert_array_equal(source.labels, source.columns["probability"] >= 0.5)
    by_probability = dict(zip(np.round(source.columns["probability"], 3), source.weights, strict=True))
    assert by_probability == {0.0: 1.0, 0.333: np.float32(1 / 3), 0.667: np.float32(2 / 3), 1.0: 1.0}


def test_four_class_task_shares_the_fingerprint(source, root):
    other = elpv_source(root, "four_class")
    np.testing.assert_array_equal(np.bincount(other.labels), [1508, 295, 106, 715])
    np.testing.assert_array_equal(other.labels, np.rint(3 * other.columns["probability"]))
    assert (len(other.class_names), set(other.weights)) == (4, {1.0})
    assert other.fingerprint == source.fingerprint


def test_fingerprint_does_not_depend_on_the_preparation(source, tmp_path):
    assert elpv_source(tmp_path, "binary").fingerprint == source.fingerprint


def test_blocks_are_the_published_modules(source):
    block, cell_type = source.columns["block"], source.columns["cell_type"]
    assert [len(np.unique(block[cell_type == kind])) for kind in ("mono", "poly")] == [18, 26]
    assert set(np.diff(block)) == {0, 1}
    assert set(np.bincount(block)) <= set(range(48, 73))


def test_blocks_of_a_run_are_equal_and_end_with_it():
    blocks = module_blocks(np.array(["mono"] * 179 + ["poly"] * 20 + ["mono"] * 60))
    np.testing.assert_array_equal(np.bincount(blocks), [60, 60, 59, 20, 60])


def test_splits_of_the_real_data(source):
    cell_type, block = source.columns["cell_type"], source.columns["block"]
    strata = combine_strata(source.labels, cell_type)
    split = stratified_split(strata, 0, 0.25, 0.0)
    assert (len(split.train), len(split.test)) == (1968, 656)
    assert np.abs(np.bincount(strata[split.test]) - np.bincount(strata) / 4).max() <= 1
    held = np.unique(block[grouped_split(block, cell_type, 0, 0.25, 0.0).test])
    assert len(held) == 11


def test_source_survives_pickling(source):
    assert pickle.loads(pickle.dumps(source))[17] == source[17]


def test_unknown_task_is_refused(root):
    with pytest.raises(ValueError, match=r"no ELPV task 'binry' \(did you mean 'binary'\?\)"):
        elpv_source(root, "binry")


def test_missing_wheel_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install elpv-dataset==1\.0\.0\.post1"):
        elpv_source(tmp_path, "binary")


def test_incomplete_and_foreign_preparations_are_refused(source, tmp_path):
    elpv_source(tmp_path, "binary")
    path = tmp_path / "elpv/1.0.0/dataset_info.json"
    info = json.loads(path.read_text())
    for promised, message in (
        ("2623", "holds 2623 examples, wanted 2624; remove"),
        ("2625", "cannot read the prepared files in .*remove"),
    ):
        info["splits"][0]["shardLengths"] = [promised]
        path.write_text(json.dumps(info))
        with pytest.raises(ValueError, match=message):
            elpv_source(tmp_path, "binary")
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="wanted array_record for random access"):
        elpv_source(tmp_path, "binary")


def test_no_other_framework_is_imported(source):
    assert not {"tensorflow", "torch", "elpv_dataset"} & set(sys.modules)
