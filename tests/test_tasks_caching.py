"""The stored prefix: the same run as from images, with a bank of changed views, and by choice of what costs less."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.small_runs import make_config, metrics_of, remembering, write_model, write_pictures
from tljax import rundir
from tljax.tasks import finetune

STORED = {"finetune": {"use_prefix_cache": True}, "prefix": {"dtype": "float32", "batch_size": 8}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caching")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    with remembering(folder / "compiled"):
        yield folder


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
