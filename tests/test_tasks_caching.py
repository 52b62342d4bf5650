"""The stored prefix: the same run as from images, with a bank of changed views, and by choice of what costs less."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.small_runs import make_config, metrics_of, write_model, write_pictures
from tljax import rundir
from tljax.data.splits import load_split
from tljax.finetune.costs import stage_flops
from tljax.tasks import caching, finetune
from tljax.tasks.caching import settle_caches
from tljax.tasks.inputs import make_split, open_inputs
from tljax.tasks.speeds import Speeds, measure_speeds

STORED = {"finetune": {"cache": "always"}, "prefix": {"dtype": "float32", "batch_size": 8}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caching")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder


@pytest.mark.parametrize("augment", [{}, {"views": 4}], ids=["no augmentation", "views"])
def test_a_run_from_the_store_is_the_run_from_images(root, tmp_path, augment):
    for name, sections in (("images", {}), ("stored", STORED)):
        finetune.run(make_config(root, augment=augment, **sections), tmp_path / name)
    first, second = (load_file(tmp_path / name / "tuned.safetensors") for name in ("images", "stored"))
    assert first.keys() == second.keys()
    for path, value in first.items():
        # A bias of keys changes no attention, so that what it learns from zero is rounding alone, about 1e-12.
        assert np.linalg.norm(value - second[path]) <= 1e-5 * np.linalg.norm(value) + 1e-10, path
    losses = [[row["loss"] for row in metrics_of(tmp_path / name) if "loss" in row] for name in ("images", "stored")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(set(losses[0])) == len(losses[0])
    # What is frozen is the same, on the devices or in the store.
    frozen = [rundir.read_json(tmp_path / name / "frozen.json") for name in ("images", "stored")]
    assert frozen[0] == frozen[1]


def test_a_bank_stands_in_for_changes_of_images(root, tmp_path):
    changes = {"views": 2, "crop_scale": (0.5, 1.0), "trivial_augment": True}
    config = make_config(root, augment=changes, **STORED)
    with pytest.raises(ValueError, match="config.augment but views .* set config.prefix.bank to their number"):
        finetune.run(config, tmp_path / "run")
    config["prefix"]["bank"] = 3
    finetune.run(config, tmp_path / "run")
    assert rundir.read_json(tmp_path / "run" / "done.json")["share_reused"] == 0
    again = {**config, "finetune": {**config["finetune"], "epochs": 2}}
    assert finetune.run(again, tmp_path / "again")["share_reused"] == 1
    for changed, message in (
        ({"augment": {}}, "config.prefix.bank is 3 and config.augment changes nothing; leave bank out"),
        ({"prefix": {**config["prefix"], "bank": 1}}, "leaves none for augment; wanted 2 or more"),
        ({"mix": {"mixup_alpha": 0.5}}, "config.mix blends images"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune.run({**config, **changed}, tmp_path / "other")


FAST_DISK, FAST_DEVICE = (
    Speeds(flops_per_s=1e5, disk_bytes_per_s=1e9),
    Speeds(flops_per_s=1e15, disk_bytes_per_s=1e5),
)
AUTO = {"finetune": {"cache": "auto"}, "prefix": {"dtype": "float16", "batch_size": 8}}


def settle(config):
    inputs = open_inputs(config)
    return settle_caches(config, inputs, make_split(inputs.source, 0, **config["split"]))


def test_the_cache_is_chosen_where_it_pays_and_the_choice_is_kept(root, tmp_path, monkeypatch, caplog):
    config = make_config(root, **AUTO)
    monkeypatch.setattr(caching, "measure_speeds", lambda folder: FAST_DISK)
    with caplog.at_level("INFO"):
        assert "share_reused" in finetune.run(config, tmp_path / "stored")
    assert "prefix cache of phase 0: always, as it pays: the prefix is " in caplog.text
    (decision,) = rundir.read_json(tmp_path / "stored" / "cache.json")
    # Three epochs of 32 images in 12 steps of 8, one evaluation of 24 images, and 24 images to test.
    assert (decision["computed"], decision["shown"]) == (80, 96 + 24 + 24)
    assert decision["store_gb"] == 80 * 17 * 16 * 2 / 1e9
    assert decision["stored_s"] < decision["images_s"] == pytest.approx(144 * decision["prefix_gflops"] * 1e4)
    monkeypatch.setattr(caching, "measure_speeds", lambda folder: FAST_DEVICE)
    config["cache_dir"] = str(tmp_path / "cache")
    assert "share_reused" not in finetune.run(config, tmp_path / "images")
    (other,) = rundir.read_json(tmp_path / "images" / "cache.json")
    assert "as it would take longer: " in other["reason"]
    # A run that goes on does as it did, whatever is faster now.
    split = load_split(tmp_path / "stored" / "split.npz", open_inputs(config).source)
    settled = settle_caches(config, open_inputs(config), split, tmp_path / "stored")
    assert settled.config["finetune"]["cache"] == "always"


def test_a_cache_that_cannot_be_is_left_out_with_the_reason(root, monkeypatch):
    monkeypatch.setattr(caching, "measure_speeds", lambda folder: FAST_DISK)
    for changes, reason in (
        ({"groups": {"freeze": 0}}, "as there can be none: .*nothing is frozen"),
        ({"mix": {"mixup_alpha": 0.5}}, "as there can be none: .*config.mix blends images"),
        ({"augment": {"erasing_probability": 0.5}}, "as there can be none: .*set config.prefix.bank"),
        ({"finetune": {**AUTO["finetune"], "cache_budget_gb": 1e-5}}, "as over config.finetune.cache_budget_gb: "),
    ):
        settled = settle(make_config(root, **{**AUTO, **changes}))
        assert settled.config["finetune"]["cache"] == "never"
        assert re.search(reason, settled.decisions[0]["reason"])
    without_section = {name: section for name, section in make_config(root, **AUTO).items() if name != "prefix"}
    assert "needs a section config.prefix" in settle(without_section).decisions[0]["reason"]
    monkeypatch.setattr(caching, "free_bytes", lambda folder: 1000)
    config = make_config(root, **AUTO)
    config["cache_dir"] = str(root / "empty")
    assert "as the disk is too full: " in settle(config).decisions[0]["reason"]


def test_phases_decide_one_by_one(root, monkeypatch):
    monkeypatch.setattr(caching, "measure_speeds", lambda folder: FAST_DISK)
    phases = [{"groups": {"freeze": "head"}}, {"cache": "never"}, {"groups": {"freeze": 0}}, {}]
    settled = settle(make_config(root, phases=phases, **AUTO))
    assert [phase["cache"] for phase in settled.config["phases"]] == ["always", "never", "never", "never"]
    assert [decision["phase"] for decision in settled.decisions] == [0, 2, 3]
    assert "are trained by an earlier phase" in settled.decisions[2]["reason"]


def test_a_cache_that_is_wanted_keeps_to_its_budget(root):
    config = make_config(root, **STORED)
    config["finetune"]["cache_budget_gb"] = 1e-5
    with pytest.raises(ValueError, match="of phase 0 takes 8.7e-05 GB, and config.finetune.cache_budget_gb is 1e-05"):
        settle(config)


def test_speeds_are_of_this_machine(tmp_path):
    speeds = measure_speeds(tmp_path / "not" / "there")
    assert speeds.flops_per_s > 1e6
    assert speeds.disk_bytes_per_s > 1e3
    assert not list(tmp_path.iterdir())


def test_no_flops_are_noted_where_there_is_no_cpu_to_count_for(monkeypatch):
    assert caching.train_tflops([]) == {"train_tflops": 0.0}
    for platforms, found in (("cuda,cpu", {"train_tflops": 0.0}), ("cuda", {})):
        monkeypatch.setattr(caching.jax, "config", SimpleNamespace(jax_platforms=platforms))
        assert caching.train_tflops([]) == found


def test_a_run_notes_the_flops_of_all_its_steps(root, tmp_path):
    config = make_config(root, groups={"freeze": 0}, finetune={"epochs": 2})
    inputs = open_inputs(config)
    whole = finetune.run(config, tmp_path / "whole")["train_tflops"]
    by_stage = stage_flops(inputs.pretrained.net, 1, inputs.pretrained.preprocess.shape)
    # The backward pass is two forward passes, but that of the first stage, where images have no gradient, one.
    an_image = 3 * sum(by_stage.values()) - by_stage["embed"]
    # Matrices are so small here that a fifth of one count, after XLA has optimised, is of all else.
    assert whole == pytest.approx(2 * 32 * an_image / 1e12, rel=0.25)
    phases = [{"groups": {"freeze": "head"}, "cache": "always", "epochs": 5}, {"groups": {"freeze": 0}}]
    config = make_config(root, phases=phases, finetune={"epochs": 2}, prefix=STORED["prefix"])
    both = finetune.run(config, tmp_path / "both")["train_tflops"]
    # A head on a stored prefix: its product, that of the gradient, and the optimizer.
    assert whole < both < 1.02 * whole
