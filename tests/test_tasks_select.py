"""A selection from config to recommendation, on small networks."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from tests.small_runs import RESNET, VIT, make_config, write_model, write_pictures
from tljax import rundir
from tljax.data.sources import open_source
from tljax.data.splits import load_split
from tljax.features.held_out import fold_accuracies
from tljax.features.leave_one_out import knn_accuracy
from tljax.features.scores import leep, logme
from tljax.features.store import FeatureStore
from tljax.models import ARCHITECTURES, Net
from tljax.tasks import extract, select
from tljax.tasks.candidates import Candidate
from tljax.tasks.inputs import make_folds
from tljax.weights.catalog import entry
from tljax.weights.catalog_entries import CATALOG

RESNET18 = ARCHITECTURES["resnet18"]  # before a small one takes its name
TAPS = ("block_00", "block_01")
SETTINGS = {"dtype": "float32", "batch_size": 16}
SPLIT = {"kind": "stratified", "repeat": 0, "test_fraction": 0.25, "val_fraction": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    write_model(folder / "headless", dataclasses.replace(VIT, num_classes=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "resnet18", dataclasses.replace(RESNET, depths=(1,), widths=(8,), num_classes=0))
        yield folder


def select_config(root, **changes):
    config = make_config(root)
    return {
        **{name: config[name] for name in ("seed", "cache_dir", "data")},
        "split": SPLIT,
        "candidates": [
            {"model": {"name": f"file:{root / 'vit'}"}, "taps": TAPS, "pooling": "cls_mean", "label": "vit"},
            {"model": {"name": f"file:{root / 'headless'}"}, "taps": TAPS[1:], "pooling": "cls_mean", "label": "bare"},
            {"model": {"name": "random:resnet18", "image_size": 16}, "taps": ("layer1_00",), "pooling": "mean"},
        ],
        "select": {
            "scores": select.KNOWN, "num_folds": 2, "strengths": (1.0, 0.01), "neighbours": 3, **SETTINGS,
        },
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(root):
    result = select.run(select_config(root), root / "run")
    return result, json.loads((root / "run" / "select.json").read_text())


def store_of(root, tap, *, has_head):
    """The store of the ViT, found by what is in it."""
    stores = [FeatureStore(folder) for folder in (root / "cache" / "features").iterdir()]
    (found,) = [one for one in stores if tap in one.arrays and ("head" in one.arrays) == has_head]
    return found


def test_scores_are_those_of_the_rows_that_are_not_for_testing(root, finished):
    result, record = finished
    source = open_source("folder", str(root / "pictures"))
    split = load_split(root / "run" / "split.npz", source)
    rows = np.sort(np.concatenate([split.train, split.val]))
    assert record["num_images"] == len(rows) == 60
    labels, store = source.labels[rows], store_of(root, "block_00", has_head=True)
    first = record["candidates"][0]
    assert first["name"] == "vit block_00"
    values = store.read("block_00")[rows]
    assert first["width"] == values.shape[1] == 32
    assert first["scores"]["logme"] == pytest.approx(logme(values, labels), rel=1e-12)
    assert first["scores"]["knn"] == knn_accuracy(values, labels, neighbours=3)
    dealt = make_folds(source, rows, 2, 0, **SPLIT)
    folds = [(np.searchsorted(rows, train), np.searchsorted(rows, held_out)) for train, held_out in dealt]
    assert first["accuracies"] == pytest.approx(fold_accuracies(values, labels, 2, folds, (1.0, 0.01)))
    assert result["accuracy/vit block_00"] == pytest.approx(np.mean(first["accuracies"]))
    scores = store.read("head")[rows].astype(float)
    theta = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert first["scores"]["leep"] == pytest.approx(leep(theta, labels), rel=1e-6)
    # Of the model, so of all its stages; the others have no source head.
    assert ["leep" in one["scores"] for one in record["candidates"]] == [True, True, False, False]
    assert first["seconds"] > 0
    assert first["params_m"] < record["candidates"][1]["params_m"]
    assert first["gflops"] < record["candidates"][1]["gflops"]


def test_the_run_leaves_words_and_a_picture_and_is_idempotent(root, finished, monkeypatch):
    result, record = finished
    names = [one["name"] for one in record["candidates"]]
    assert names == ["vit block_00", "vit block_01", "bare block_01", "random:resnet18 layer1_00"]
    text = (root / "run" / "select.md").read_text()
    assert record["recommendation"] in text
    assert all(name in text for name in names)
    assert record["recommended"] in record["within_one_standard_error"]
    assert record["recommendation"].startswith(f"Take {record['recommended']}: accuracy {result['recommended']:.4f}")
    assert (root / "run" / "select.svg").read_text().startswith("<svg")
    assert set(record["rank_correlations"]) == {"logme", "h_score", "transrate", "knn", "ridge"}
    monkeypatch.setattr(select, "open_candidates", None)
    assert select.run(select_config(root), root / "run") == result


def test_features_are_shared_with_the_task_extract(root, finished, tmp_path):
    model = {"name": f"file:{root / 'headless'}"}
    features = {"taps": TAPS[1:], "pooling": "cls_mean", "views": 1, **SETTINGS}
    config = make_config(root, model=model, features=features)
    assert extract.run(config, tmp_path / "run")["share_reused"] == 1


def test_folds_hold_out_whole_groups_where_the_split_names_groups(root, tmp_path, monkeypatch):
    plain = open_source("folder", str(root / "pictures"))
    columns = {"camera": np.arange(len(plain)) % 8}

    class Grouped:
        def __getattr__(self, name):
            return columns if name == "columns" else getattr(plain, name)

        def __len__(self):
            return len(plain)

        def __getitem__(self, index):
            return plain[index]

    seen = {}

    def watching(features, labels, *, neighbours, groups):
        seen["groups"] = groups
        return 0.5

    def judging(features, labels, num_classes, folds, strengths):
        seen["folds"] = folds
        return [0.5, 0.6]

    monkeypatch.setattr("tljax.tasks.candidates.open_data", lambda config: Grouped())
    monkeypatch.setattr(select, "knn_accuracy", watching)
    monkeypatch.setattr(select, "fold_accuracies", judging)
    settings = {**select_config(root)["select"], "scores": ("knn",)}
    config = select_config(root, split={**SPLIT, "groups": "camera"}, select=settings)
    config["candidates"] = config["candidates"][1:2]
    select.run(config, tmp_path / "run")
    cameras = seen["groups"]
    assert len(cameras) == 60
    for train, out in seen["folds"]:
        assert not set(cameras[train]) & set(cameras[out])
    assert "whole groups of 'camera'" in json.loads((tmp_path / "run" / "select.json").read_text())["held_out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": []}, "config.candidates is empty"),
        ({"candidates": "twice"}, "vit block_00 cls_mean 16 px.* is there more than once"),
        ({"candidates": "misspelt"}, r"config.candidates\[0\]: no key 'tap' \(did you mean 'taps'\?\)"),
        ({"select": {"scores": ("logm",)}}, r"no score 'logm' \(did you mean 'logme'\?\)"),
        ({"select": {"num_folds": 1}}, "num_folds is 1, wanted two or more"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_no_work(root, tmp_path, changes, message):
    config = select_config(root)
    first = config["candidates"][0]
    if "select" in changes:
        config["select"] = {**config["select"], **changes["select"]}
    else:
        misspelt = {("tap" if key == "taps" else key): value for key, value in first.items()}
        config["candidates"] = {"twice": [first, first], "misspelt": [misspelt]}.get(changes["candidates"] or "", [])
    with pytest.raises(ValueError, match=message):
        select.run(config, tmp_path / "run")
    assert not rundir.has_work(tmp_path / "run")


def test_the_shipped_config_fits(root, tmp_path):
    file = Path(__file__).parent.parent / "configs" / "select.py"
    shipped = runpy.run_path(str(file))["get_config"]().to_dict()
    for section in shipped["candidates"]:
        candidate = Candidate(**section)
        name = candidate.model["name"]
        known = entry(name).architecture if name in CATALOG else name.removeprefix("random:")
        stages = RESNET18.stages if known == "resnet18" else Net(ARCHITECTURES[known]).stages
        assert set(candidate.taps) <= set(stages)
    own = select_config(root)
    changes = {name: own[name] for name in ("cache_dir", "data")}
    result = select.run({**shipped, **changes, "candidates": own["candidates"][1:2]}, tmp_path / "run")
    assert 0.5 < result["recommended"] <= 1
