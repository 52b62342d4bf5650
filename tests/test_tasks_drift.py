"""What a run says of how far it went, and rates that follow the pull of the gradient."""

import dataclasses
import json
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from PIL import Image

from tests.small_runs import VIT
from tljax import rundir
from tljax.models import Net
from tljax.preprocess import Preprocess
from tljax.tasks import finetune
from tljax.tasks.drifting import measure_drift
from tljax.tasks.feed import Feed, open_feed
from tljax.tasks.inputs import open_inputs
from tljax.tasks.plan import plan_phases
from tljax.tasks.training import Result
from tljax.weights.write import write_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and two classes of 20 pictures."""
    root = tmp_path_factory.mktemp("drift")
    params, _ = Net(VIT).init(jax.random.key(0))
    write_model_folder(root / "model", VIT, params, Preprocess(size=16))
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 60), ("light", 190)):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            noise = rng.normal(brightness, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / "pictures" / name / f"{index:02d}.png")
    return root


def config_of(folder, **changes):
    config = {
        "seed": 0,
        "cache_dir": str(folder / "cache"),
        "model": {"name": f"file:{folder / 'model'}", "image_size": 16, "head": {"init": "scaled"}},
        "data": {"name": "folder", "root": str(folder / "pictures")},
        "split": {"kind": "stratified", "repeat": 0, "test_fraction": 0.3, "val_fraction": 0.3},
        "evaluate": {},
        "groups": {"freeze": "block_01"},
        "augment": {"views": 1},
        "optimizer": {"name": "adamw", "weight_decay": 0.0, "clip_norm": 1.0},
        "schedule": {"name": "constant", "learning_rate": 1e-2, "warmup_fraction": 0.0},
        "loss": {"name": "softmax"},
        "prefix": {"dtype": "float32", "batch_size": 8},
        "finetune": {
            "epochs": 2, "batch_size": 8, "cache": "never", "checkpoint_every": 10, "evaluate_every": 10,
        },
    }  # fmt: skip
    return {**config, **changes}


@pytest.mark.parametrize("cache", ["never", "always"])
def test_a_run_tells_how_far_each_stage_went(tmp_path, folder, cache):
    config = config_of(folder)
    config["finetune"] = {**config["finetune"], "cache": cache}
    result = finetune.run(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "drift.json").read_text())
    # 12 of 40 pictures are for validation.
    assert found["num_images"] == 12
    rows = {row["stage"]: row for row in found["stages"]}
    assert list(rows) == ["embed", "block_00", "block_01", "norm"]
    for stage, row in rows.items():
        is_trained = stage in ("block_01", "norm")
        assert (row["relative_l2"] > 0) == is_trained
        assert row["cka"] < 1 if is_trained else row["cka"] == pytest.approx(1, abs=1e-6)
        assert (result.get(f"drift/{stage}/relative_l2", 0) > 0) == is_trained
    ElementTree.fromstring((tmp_path / "run" / "drift.svg").read_text())


def test_a_drift_that_has_no_number_is_null_and_is_not_returned(tmp_path, folder, monkeypatch):
    """The final norm was all zeros, and all images that are compared are the same."""
    config = config_of(folder)
    inputs = open_inputs(config)
    params = {
        path: 0 * value if path.startswith("norm/") else value for path, value in inputs.pretrained.params.items()
    }
    inputs = dataclasses.replace(inputs, pretrained=dataclasses.replace(inputs.pretrained, params=params))
    (plan,) = plan_phases(config, inputs, np.zeros(20, np.int32))
    trained, _ = plan.groups.split(plan.initial)
    result = Result(trained={path: value + 1 for path, value in trained.items()}, stats={})
    batch = {"image": np.full((8, 16, 16, 3), 7, np.uint8), "mask": np.ones(8, bool)}
    monkeypatch.setattr(Feed, "ordered", lambda self, indices: iter([batch]))
    for count in (8, 1):
        found = measure_drift(plan, result, open_feed(plan), np.arange(count), tmp_path)
        rows = json.loads((tmp_path / "drift.json").read_text(), parse_constant=pytest.fail)["stages"]
        assert [row["stage"] for row in rows if row["relative_l2"] is None] == ["norm"]
        assert {row["cka"] for row in rows} == {None}
        assert set(found) == {"drift/norm/cosine", "drift/block_01/relative_l2", "drift/block_01/cosine"}
        ElementTree.fromstring((tmp_path / "drift.svg").read_text())


def test_rates_follow_the_relative_gradient(tmp_path, folder):
    config = config_of(folder, relative_gradients={"num_batches": 2}, groups={"freeze": 0})
    finetune.run(config, tmp_path / "run")
    norms = json.loads((tmp_path / "run" / "relative_gradients.json").read_text())
    assert set(norms) == {"embed", "block_00", "block_01", "norm"}
    rates = {row["stage"]: row["learning_rate"] for row in rundir.read_json(tmp_path / "run" / "partition.json")}
    for stage, norm in norms.items():
        assert rates[stage] == pytest.approx(1e-2 * norm / max(norms.values()))
    assert rates["head"] == pytest.approx(1e-2)


def test_the_stages_with_the_largest_relative_gradient_are_chosen(tmp_path, folder):
    config = config_of(folder, relative_gradients={"num_batches": 2, "count": 2})
    finetune.run(config, tmp_path / "run")
    norms = json.loads((tmp_path / "run" / "relative_gradients.json").read_text())
    wanted = {*sorted(norms, key=lambda stage: -norms[stage])[:2], "head"}
    rows = rundir.read_json(tmp_path / "run" / "partition.json")
    assert {row["stage"] for row in rows if row["is_trained"]} == wanted


def test_a_head_of_zeros_sends_no_gradient_and_is_named(tmp_path, folder):
    config = config_of(folder, relative_gradients={"num_batches": 1})
    config["model"] = {**config["model"], "head": {"init": "zeros"}}
    with pytest.raises(ValueError, match=r"a new head starts at zero; give it other values with config.model.head"):
        finetune.run(config, tmp_path / "run")
