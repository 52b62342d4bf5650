"""The probe task: what is chosen on what, fitted on what, and tested once."""

import json

import numpy as np
import pytest

from tests.small_runs import make_config, split_of, write_model, write_pictures
from tljax.data.splits import hashed_seed
from tljax.features.choosing import ProbeData
from tljax.features.few_shot import draw_shots
from tljax.features.probes import fit_ridge
from tljax.features.store import open_store
from tljax.tasks import probe
from tljax.tasks.inputs import make_folds

RIDGE = {"strengths": (1.0, 0.1, 0.01), "use_leave_one_out": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder


def probe_config(root, **sections):
    features = {"taps": ("block_00", "block_01"), "pooling": "mean", "views": 1, "dtype": "float32", "batch_size": 16}
    given = {
        "features": features,
        "probe": {"refit_on_val": True, "num_folds": 0, "ridge": ("block_00+block_01",)},
        "ridge": RIDGE,
    }
    return make_config(root, **{**given, **sections})


def features_of(root):
    (folder,) = (root / "cache" / "features").iterdir()
    store = open_store(folder)
    return np.concatenate([store.read(tap) for tap in ("block_00", "block_01")], axis=1).astype(np.float32)


@pytest.mark.parametrize("refit_on_val", [False, True])
@pytest.mark.parametrize("num_folds", [0, 3])
def test_choose_on_validation_or_folds_and_fit_on_train_or_both(root, tmp_path, refit_on_val, num_folds):
    section = {"refit_on_val": refit_on_val, "num_folds": num_folds, "ridge": ("block_00+block_01",)}
    config = probe_config(root, probe=section)
    result = probe.run(config, tmp_path / "run")
    source, split = split_of(root, tmp_path / "run")
    train = np.sort(np.concatenate([split.train, split.val])) if refit_on_val else split.train
    folds = make_folds(source, train, num_folds, 0, **config["split"]) if num_folds else [(split.train, split.val)]
    features = features_of(root)
    data = ProbeData(features=features, labels=source.labels, num_classes=2, folds=folds, train=train, seed=0)
    classifier, chosen = fit_ridge(data, **RIDGE)
    right = classifier.predict_proba(features[split.test]).argmax(axis=1) == source.labels[split.test]
    (record,) = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert record["chosen"] == chosen
    assert result["ridge/blocks 1+2/accuracy"] == record["metrics"]["accuracy"] == right.mean()
    assert record["n_test"] == len(split.test)


def test_folds_keep_strata_and_whole_groups(root, tmp_path, monkeypatch):
    probe.run(probe_config(root), tmp_path / "run")
    source, split = split_of(root, tmp_path / "run")
    settings = probe_config(root)["split"]
    for train, held_out in make_folds(source, split.train, 4, 0, **settings):
        assert set(train) | set(held_out) == set(split.train)
        assert not set(train) & set(held_out)
        assert np.ptp(np.bincount(source.labels[held_out])) <= 1
    groups = np.arange(len(source)) // 8  # of one class each: 40 images of either
    grouped = {**settings, "kind": "grouped", "groups": "module"}
    monkeypatch.setattr(type(source), "columns", {"module": groups})
    for train, held_out in make_folds(source, np.arange(len(source)), 5, 0, **grouped):
        assert not set(groups[train]) & set(groups[held_out])


def test_few_shots_are_drawn_from_train_chosen_on_val_and_tested_on_test(root, tmp_path):
    few = {"shots": (1, 3, 6), "draws": 2, "method": "ridge"}
    config = probe_config(root, few_shot=few)
    result = probe.run(config, tmp_path / "run")
    source, split = split_of(root, tmp_path / "run")
    features = features_of(root)
    records = json.loads((tmp_path / "run" / "few_shot.json").read_text())
    assert [record["shots"] for record in records] == [1, 3, 6]
    for record in records:
        count, accuracies = record["shots"], []
        for number, draw in enumerate(record["draws"]):
            seed = hashed_seed(0, f"few shots, draw {number}")
            train = draw_shots(source.labels, split.train, 2, (count,), seed)[count]
            val = draw_shots(source.labels, split.val, 2, (min(count, 4),), seed)[min(count, 4)]
            data = ProbeData(
                features=features, labels=source.labels, num_classes=2, folds=[(train, val)], train=train, seed=0
            )
            classifier, chosen = fit_ridge(data, **RIDGE)
            assert draw["chosen"] == chosen
            right = classifier.predict_proba(features[split.test]).argmax(axis=1) == source.labels[split.test]
            accuracies.append(right.mean())
            assert draw["metrics"]["accuracy"] == accuracies[-1]
        name = f"few_shot/ridge/blocks 1+2/{count}/accuracy"
        assert result[name] == pytest.approx(np.mean(accuracies))
        assert result[f"{name}_sd"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"few_shot": {"shots": (1,), "draws": 2, "method": "knn"}}, "one with features in config.probe: ridge"),
        ({"few_shot": {"shots": (1,), "draws": 1, "method": "ridge"}}, "draws is 1, wanted at least 2"),
        ({"few_shot": {"shots": (99,), "draws": 2, "method": "ridge"}}, "99 examples of each class wanted"),
        ({"probe": {"refit_on_val": True, "num_folds": 1, "ridge": ("block_00",)}}, "k is 1, wanted 2 to 56"),
        ({"split": {"val_fraction": 0.0}}, "raise config.split.val_fraction, or set config.probe.num_folds"),
    ],
)
def test_what_does_not_fit_is_named(root, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        probe.run(probe_config(root, **sections), tmp_path / "run")
