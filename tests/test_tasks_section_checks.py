import copy

import pytest

from tests.small_runs import make_config
from tljax.tasks.section_checks import check_config, fingerprint_of, known_fields


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def changed(config, section, **values):
    return {**copy.deepcopy(config), section: {**config.get(section, {}), **values}}


def same(one, other, task="finetune"):
    return fingerprint_of(task, one) == fingerprint_of(task, other)


def test_configs_that_compute_the_same_are_one(config):
    assert same(config, changed(config, "finetune", keep="last", average_decay=None))
    assert same(config, changed(config, "split", strata=("label",)))
    assert same(changed(config, "split", strata=("label", "x")), changed(config, "split", strata=["label", "x"]))
    # Nothing is stored, so how it would be stored is nothing.
    assert same(config, changed(config, "prefix", dtype="float16", batch_size=8))
    assert same(config, {**config, "execution": {"num_workers": 2}})
    assert same(config, {**config, "knn": {"neighbours": (5,), "temperature": 0.1}})
    assert same(changed(config, "optimizer", clip_norm=1), changed(config, "optimizer", clip_norm=1.0))


def test_configs_that_compute_something_else_are_not(config):
    cached = changed(changed(config, "finetune", cache="always"), "prefix", dtype="float16", batch_size=8)
    others = [
        {**config, "seed": 1}, changed(config, "loss", label_smoothing=0.1), changed(config, "finetune", keep="best"),
        changed(config, "groups", rates={"body": 0.25}), cached, changed(cached, "prefix", dtype="float32"),
        {**config, "phases": [{"epochs": 1}, {"epochs": 1}]}, {**config, "mix": {"mixup_alpha": 0.1}},
    ]  # fmt: skip
    assert len({fingerprint_of("finetune", one) for one in [config, *others]}) == len(others) + 1
    assert not same(config, changed(config, "finetune", use_remat=1))


def test_every_mistake_that_needs_no_data_is_found_at_once(config):
    check_config("finetune", config)
    wrong = changed(changed(config, "finetune", epochs=0), "schedule", learning_rte=1.0)
    wrong = changed(changed(wrong, "data", rot="x"), "augment", brightness=-1)
    with pytest.raises(ValueError, match="epochs is 0") as caught:
        check_config("finetune", wrong)
    for part in ("no key 'learning_rte' .did you mean 'learning_rate'", "no key 'rot' .did you mean 'root'"):
        assert caught.match(part)
    with pytest.raises(ValueError, match="the config of finetune: key 'loss' is missing"):
        check_config("finetune", {name: value for name, value in config.items() if name != "loss"})
    with pytest.raises(ValueError, match="cache is 'perhaps'"):
        check_config("finetune", {**config, "phases": [{}, {"cache": "perhaps"}]})
    with pytest.raises(ValueError, match="no data source 'foldr' .did you mean 'folder'"):
        check_config("finetune", changed(config, "data", name="foldr"))


def test_known_fields_are_those_of_the_functions_that_take_them(config):
    known = known_fields("finetune", config)
    assert "label_smoothing" in known["loss"]
    assert "labels" not in known["loss"]
    assert {"name", "root"} <= {*known["data"]}
    assert "knn" not in known
