"""Several processes on one machine: the same numbers, and an end together, however one of them ends."""

import json

import jax
import numpy as np
import pytest

from tests.same_numbers import assert_same_numbers, train_on_mesh
from tests.several import start_cli, start_job
from tests.small_runs import make_config, metrics_of, write_model, write_pictures


def test_two_processes_of_four_devices_give_the_numbers_of_one(tmp_path):
    with start_job("tests.same_numbers:save_from_first", [str(tmp_path)], tmp_path, 2) as running:
        ended = running.join()
    assert [process.status for process in ended] == [0, 0], ended
    for path in tmp_path.glob("*.npz"):
        with np.load(path) as found:
            assert_same_numbers(dict(found), train_on_mesh(path.stem.partition("_")[0], jax.devices()[:1]))
    assert len(list(tmp_path.glob("*.npz"))) == 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    (folder / "config.py").write_text(CONFIG_FILE)
    return folder


CONFIG_FILE = """
import json
import ml_collections

def get_config(arg):
    with open(arg) as file:
        return ml_collections.ConfigDict(json.load(file))
"""


def arguments(root, workdir, task="finetune", **sections):
    """The command line of a run with the config of `make_config`."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir.with_suffix(".json")
    file.write_text(json.dumps(make_config(root, **sections)))
    return [task, f"--config={root / 'config.py'}:{file}", f"--workdir={workdir}"]


def finish(root, workdir, num_processes, devices_each, **sections):
    with start_cli(arguments(root, workdir, **sections), workdir.parent, num_processes, devices_each) as running:
        ended = running.join()
    assert [process.status for process in ended] == [0] * num_processes, ended
    return ended


def assert_same_run(one, other):
    """The same to rounding: every step, every evaluation, the test."""
    for found, wanted in zip(metrics_of(one), metrics_of(other), strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} of {wanted}")
    results = [json.loads((workdir / "done.json").read_text()) for workdir in (one, other)]
    assert results[0].keys() == results[1].keys()
    for name, value in results[1].items():
        if name != "seconds":
            np.testing.assert_allclose(results[0][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


SECTIONS = {"finetune": {"checkpoint_every": 2, "evaluate_every": 4, "drift_images": 8, "batch_size": 8}}


@pytest.mark.parametrize("cache", ["never", "always"])
def test_a_run_by_two_processes_is_that_of_one(root, tmp_path, cache):
    """Images and a stored prefix; test and validation count each image once; process 0 writes."""
    sections = {**SECTIONS, "finetune": {**SECTIONS["finetune"], "cache": cache}}
    if cache == "always":
        sections |= {"prefix": {"dtype": "float32", "batch_size": 8}, "cache_dir": str(tmp_path / "cache")}
    two = finish(root, tmp_path / "two", 2, 2, **sections)
    if cache == "always":
        sections |= {"cache_dir": str(tmp_path / "cache_of_one")}
    finish(root, tmp_path / "one", 1, 1, **sections)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert "accuracy" in two[0].output
    assert "accuracy" not in two[1].output.splitlines()[-1]
    evaluations = [json.loads((tmp_path / name / "evaluations.json").read_text())[0] for name in ("two", "one")]
    assert evaluations[0]["n_test"] == evaluations[1]["n_test"] == 24
    assert np.sum(evaluations[0]["confusion"]) == 24
