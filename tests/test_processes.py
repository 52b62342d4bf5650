"""Several processes on one machine: the same numbers, and an end together, however one of them ends."""

import json
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.same_numbers import assert_same_numbers, train_on_one
from tests.several import free_port, start_cli, start_job
from tests.small_runs import make_config, metrics_of, write_model, write_pictures
from tljax import process_groups, processes
from tljax.cli import main
from tljax.tasks import finetune, lr_find


def test_two_processes_of_four_devices_give_the_numbers_of_one(tmp_path):
    with start_job("tests.same_numbers:save_from_first", [str(tmp_path)], tmp_path, 2) as running:
        ended = running.join()
    assert [process.status for process in ended] == [0, 0], ended
    for path in tmp_path.glob("*.npz"):
        with np.load(path) as found:
            assert_same_numbers(dict(found), train_on_one(path.stem.partition("_")[0]))
    assert len(list(tmp_path.glob("*.npz"))) == 2


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


def arguments(root, workdir, **sections):
    """The command line of a run with the config of `make_config`."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir.with_suffix(".json")
    file.write_text(json.dumps(make_config(root, **sections)))
    return ["finetune", f"--config={root / 'config.py'}:{file}", f"--workdir={workdir}"]


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


@pytest.mark.parametrize("cache", [pytest.param("never", marks=pytest.mark.slow), "always"])
def test_a_run_by_two_processes_is_that_of_one(root, tmp_path, cache):
    """Images and a stored prefix; test and validation count each image once; process 0 writes."""
    sections = {**SECTIONS, "finetune": {**SECTIONS["finetune"], "cache": cache}}
    if cache == "always":
        sections |= {"prefix": {"dtype": "float32", "batch_size": 8}, "cache_dir": str(tmp_path / "cache")}
    two = finish(root, tmp_path / "two", 2, 2, **sections)
    if cache == "always":
        sections |= {"cache_dir": str(tmp_path / "cache_of_one")}
    finetune.run(make_config(root, **sections), tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert "accuracy" in two[0].output
    assert "accuracy" not in two[1].output.splitlines()[-1]
    evaluations = [json.loads((tmp_path / name / "evaluations.json").read_text())[0] for name in ("two", "one")]
    assert evaluations[0]["n_test"] == evaluations[1]["n_test"] == 24
    assert np.sum(evaluations[0]["confusion"]) == 24


# Long enough to be hit in the middle, and so slow to learn that rounding stays rounding.
LONG = {
    "finetune": {"epochs": 20, "checkpoint_every": 7, "evaluate_every": 1000, "drift_images": 0, "batch_size": 8},
    "schedule": {"learning_rate": 0.01},
}
NUM_STEPS = 80


@pytest.fixture(scope="module")
def undisturbed(root):
    finetune.run(make_config(root, **LONG), root / "undisturbed")
    return root / "undisturbed"


def steps_taken(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def start_long(root, workdir):
    return start_cli(arguments(root, workdir, **LONG), workdir.parent, 2, 2)


def test_sigterm_to_one_process_saves_at_one_step_and_another_number_of_devices_goes_on(root, tmp_path, undisturbed):
    workdir = tmp_path / "run"
    with start_long(root, workdir) as running:
        running.wait_until(lambda: steps_taken(workdir) > 20)
        running.signal(1, signal.SIGTERM)
        ended = running.join()
    assert [process.status for process in ended] == [processes.REQUEUE] * 2, ended
    saved = [re.search(r"told to end by SIGTERM; step (\d+) is saved", process.output) for process in ended]
    steps = {int(found[1]) for found in saved if found}
    assert len(steps) == 1
    assert 20 < steps.pop() < NUM_STEPS
    assert not (workdir / "done.json").exists()
    assert steps_taken(workdir) == max(int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*"))
    # As an alone process with other devices.
    finetune.run(make_config(root, **LONG), workdir)
    assert_same_run(workdir, undisturbed)


@pytest.mark.parametrize(
    "victim", [pytest.param(0, id="the coordinator"), pytest.param(1, id="the other", marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_other_within_a_minute_and_loses_no_checkpoint(root, tmp_path, undisturbed, victim):
    workdir = tmp_path / "run"
    with start_long(root, workdir) as running:
        running.wait_until(lambda: steps_taken(workdir) > 20)
        running.signal(victim, signal.SIGKILL)
        ended = running.join(timeout_s=60)
    assert ended[victim].status == -signal.SIGKILL
    other = ended[1 - victim]
    assert other.status != 0
    # JAX, which aborts a process that has lost process 0, may be the first to say so.
    messages = (
        "lost the other processes",
        "has died: see its log",
        "This most likely indicates that another task died",
    )
    assert any(message in other.output for message in messages), other
    finetune.run(make_config(root, **LONG), workdir)
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_both_and_is_named(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    for path in (tmp_path / "pictures" / "light").glob("3*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with start_cli(arguments(tmp_path, tmp_path / "run"), tmp_path, 2, 2) as running:
        ended = running.join()
    assert [process.status for process in ended] == [processes.FAILED] * 2, ended
    assert all(re.search(r"light/3\d.png", process.output) for process in ended), ended


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_both_and_is_named(root, tmp_path):
    """A limit on the size of files stands in for the disk: the first checkpoint is larger."""
    workdir = tmp_path / "run"
    call = arguments(root, workdir, **LONG, execution={"save_timeout_s": 5})
    with start_cli(call, workdir.parent, 2, 2, limits={0: "-f 16"}) as running:
        ended = running.join()
    assert processes.FAILED in [process.status for process in ended], ended
    assert all(process.status for process in ended)
    assert any("cannot save a checkpoint" in process.output for process in ended), ended


_ENDS = """
import atexit, sys, threading
import jax
from tljax import processes
from tljax.process_groups import Group
# Called after what `join` has left for the end.
atexit.register(lambda: print([thread.name for thread in threading.enumerate() if thread.name.startswith("tljax")]))
processes.join(Group(coordinator=sys.argv[1], num_processes=1, process_id=0))
print([thread.name for thread in threading.enumerate() if thread.name.startswith("tljax")])
"""


def test_nothing_watches_when_python_goes():
    """A thread that came back from JAX's runtime then would abort a process that has finished."""
    command = [sys.executable, "-c", _ENDS, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["['tljax watches the other processes']", "[]", ""]), done


def test_a_task_for_one_process_says_so(root, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="tljax lr_find runs in one process, and this is one of 2"):
        lr_find.run(make_config(root), tmp_path / "run")


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "0"}, 4),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
    ],
)
def test_processes_are_found_as_clusters_start_them(environment, count):
    assert process_groups.found_processes(environment) == count


def test_flags_that_name_no_group_are_refused(root, tmp_path, capsys):
    call = arguments(root, tmp_path / "run")
    for flags, message in (
        (["--num_processes=2"], "--coordinator and --process_id missing"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "is 'here', wanted HOST:PORT"),
        (["--coordinator=here:1", "--num_processes=2", "--process_id=2"], "process_id is 2 of 2 processes"),
    ):
        assert main([*call, *flags]) == processes.FAILED
        assert message in capsys.readouterr().err
