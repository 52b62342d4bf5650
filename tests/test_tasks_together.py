"""Runs that train together end as each of them does alone."""

import copy
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.small_runs import RESNET, make_config, metrics_of, write_model, write_pictures
from tljax import processes, rundir
from tljax.ablation.runs import DONE, FAILED, PENDING, Run
from tljax.tasks import finetune, together_program
from tljax.tasks.together import group, run_all, run_together

STORED = {
    "prefix": {"dtype": "float32", "batch_size": 8},
    "finetune": {"cache": "always", "epochs": 2, "evaluate_every": 3, "checkpoint_every": 4},
}
# Of the small runs with statistics one takes 0.06 MB.
SMALL_GB = 1e-4
NO_OTHER = "no other run differs from it only in what a program can take as a number"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    # BatchNorm in training mode takes differences from the running mean; many deviations away they lose the digits that
    # are compared here.
    write_model(folder / "resnet", RESNET, is_far=False)
    return folder


def changed(config, **settings):
    """A copy of a config with settings by dotted name, of which the dots are written `__`."""
    config = copy.deepcopy(config)
    for name, value in settings.items():
        *sections, key = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
    return config


def runs_of(configs, folder):
    return [Run(task="finetune", config=config, workdir=folder / f"{index}") for index, config in enumerate(configs)]


def alone_of(runs, folder):
    folders = [folder / Path(run.workdir).name for run in runs]
    for run, workdir in zip(runs, folders, strict=True):
        finetune.run(run.config, workdir)
    return folders


def assert_same_run(mine, other, *, rtol, atol=1e-7):
    """Compare two run directories: files, metrics of every step, params, predictions, records."""
    # Times, the checkpoints of one run, locks and what a launcher keeps are of one way only.
    of_one_way = {"checkpoints", "timing.jsonl", "startup.json", ".lock", "launch"}
    names = [{path.name for path in Path(folder).iterdir()} - of_one_way for folder in (mine, other)]
    assert names[0] == names[1]
    for name in ("config.json", "inputs.json", "classes.json", "frozen.json", "partition.json"):
        assert (mine / name).read_text() == (other / name).read_text(), name
    rows = [metrics_of(folder) for folder in (mine, other)]
    assert [sorted(row) for row in rows[0]] == [sorted(row) for row in rows[1]]
    for row, wanted in zip(*rows, strict=True):
        np.testing.assert_allclose(list(row.values()), list(wanted.values()), rtol=rtol, atol=1e-6)
    arrays = [load_file(folder / "tuned.safetensors") for folder in (mine, other)]
    assert arrays[0].keys() == arrays[1].keys()
    for path, value in arrays[0].items():
        distance = np.linalg.norm(value - arrays[1][path])
        assert distance <= rtol * np.linalg.norm(arrays[1][path]) + atol, (path, distance)
    found = [np.load(folder / "predictions.npz") for folder in (mine, other)]
    np.testing.assert_array_equal(found[0]["index"], found[1]["index"])
    np.testing.assert_allclose(found[0]["probabilities"], found[1]["probabilities"], rtol=0, atol=10 * rtol)
    records = [json.loads((folder / "evaluations.json").read_text())[0] for folder in (mine, other)]
    assert records[0]["chosen"] == records[1]["chosen"]
    assert rundir.read_json(mine / "done.json").keys() == rundir.read_json(other / "done.json").keys()


def assert_same_bits(mine, other):
    for name in (
        "metrics.jsonl", "tuned.safetensors", "evaluations.json", "predictions.npz", "frozen.json", "split.npz",
    ):  # fmt: skip
        assert (mine / name).read_bytes() == (other / name).read_bytes(), name


def test_runs_together_equal_runs_alone(root, tmp_path):
    """SGD: updates are linear in the gradient, so differences stay those of sums in another order."""
    penalties = {"l2_sp": {"strength": 0.1, "head_strength": 0.01}}
    base = make_config(root, **STORED, penalties=penalties, regularise={"stochastic_depth": 0.3})
    configs = [
        base,
        changed(base, seed=1, loss__label_smoothing=0.2, penalties__l2_sp__strength=1.0),
        changed(base, schedule__learning_rate=0.03, schedule__name="linear", optimizer__weight_decay=0.1),
        changed(base, seed=2**33 + 5, split__seed=0, optimizer__weight_decay=0.0, groups__rates={"body": 0.1}),
    ]
    runs = runs_of(configs, tmp_path / "together")
    (together,) = group(runs)
    assert together.why_alone is None
    assert together.runs == tuple(runs)
    outcomes = run_together(together.runs)
    assert [outcome.state for outcome in outcomes] == [DONE] * 4, [outcome.detail for outcome in outcomes]
    for run, workdir in zip(runs, alone_of(runs, tmp_path / "alone"), strict=True):
        assert_same_run(Path(run.workdir), workdir, rtol=1e-5)
    losses = [metrics_of(Path(run.workdir))[-2]["loss"] for run in runs]
    assert len(set(losses)) == 4


@pytest.mark.slow
def test_runs_of_adamw_with_deltas_and_the_best_step_kept(root, tmp_path):
    """AdamW divides a gradient by its own size: where that is rounding alone, so is the update, up to the rate."""
    base = make_config(
        root, **STORED, lora={"rules": ["block_01/attn/query/kernel"], "rank": 2, "alpha": 4.0},
        groups={"freeze": "block_01", "rates": {"lora": 0.5}, "rules": [("block_01/attn/key/bias", "frozen")]},
        optimizer={"name": "adamw", "weight_decay": 0.1, "arguments": {}},
        schedule={"name": "constant", "learning_rate": 1e-3, "warmup_fraction": 0.0},
    )  # fmt: skip
    base = changed(base, finetune__keep="best", finetune__average_decay=0.5, finetune__drift_images=8)
    configs = [
        base,
        changed(base, seed=1, optimizer__weight_decay=0.0),
        changed(base, schedule__learning_rate=1e-2),
    ]
    runs = runs_of(configs, tmp_path / "together")
    assert [outcome.state for outcome in run_together(runs)] == [DONE] * 3
    for run, workdir in zip(runs, alone_of(runs, tmp_path / "alone"), strict=True):
        rate = run.config["schedule"]["learning_rate"]
        assert_same_run(Path(run.workdir), workdir, rtol=1e-3, atol=0.02 * rate)


@pytest.mark.slow
@pytest.mark.parametrize("freezes", [False, True])
def test_statistics_of_a_batch_or_kept_and_batches_from_the_host(root, tmp_path, monkeypatch, freezes):
    """A ResNet whose BatchNorm moves or keeps statistics; so little memory that runs take turns; the store on disk."""
    base = make_config(root, **STORED, groups={"freeze": "layer2_00", "rates": {"body": 0.5}})
    base = changed(
        base, model__name=f"file:{root / 'resnet'}", loss__class_weighting="inverse", split__val_fraction=0.0,
        finetune__freeze_statistics=freezes,
    )  # fmt: skip
    runs = runs_of([base, changed(base, seed=1), changed(base, optimizer__weight_decay=0.1)], tmp_path / "together")
    monkeypatch.setattr(together_program, "_STORE_SHARE", 0.0)
    outcomes = run_together(runs, budget_gb=SMALL_GB)
    assert [outcome.state for outcome in outcomes] == [DONE] * 3, [outcome.detail for outcome in outcomes]
    together = [rundir.read_json(Path(run.workdir) / "env.json")[-1]["together"] for run in runs]
    assert [facts["runs"] for facts in together] == [1, 1, 1]
    for run, workdir in zip(runs, alone_of(runs, tmp_path / "alone"), strict=True):
        assert_same_run(Path(run.workdir), workdir, rtol=1e-5)
        # Of what is kept nothing differs from the pretrained net, which is all that a run leaves.
        moved = [path for path in load_file(workdir / "tuned.safetensors") if path.endswith(("/mean", "/var"))]
        assert bool(moved) != freezes


def test_runs_do_not_leak_into_one_another(root, tmp_path):
    base = changed(make_config(root, **STORED), finetune__max_loss=1e3)
    configs = [base, changed(base, seed=1), changed(base, optimizer__weight_decay=0.1)]
    first = runs_of(configs, tmp_path / "first")
    run_together(first)
    others = runs_of([*configs[:2], changed(base, schedule__learning_rate=1e10)], tmp_path / "others")
    outcomes = run_together(others)
    assert [outcome.state for outcome in outcomes] == [DONE, DONE, FAILED]
    assert "step 1: " in outcomes[2].detail
    assert "Lower the learning rate" in outcomes[2].detail
    for one, other in zip(first[:2], others[:2], strict=True):
        assert_same_bits(Path(one.workdir), Path(other.workdir))
    # What has failed is left as alone: with the metrics of its good steps, and for the ordinary way to try again.
    folder = Path(others[2].workdir)
    assert [row["step"] for row in metrics_of(folder)] == [0]
    with pytest.raises(FloatingPointError, match="step 1: "):
        finetune.run(others[2].config, folder)
    assert not list((tmp_path / "others").glob(".together"))


def test_a_group_goes_on_after_a_signal_and_finished_runs_are_left_alone(root, tmp_path, monkeypatch):
    base = make_config(root, **STORED)
    configs = [base, changed(base, seed=1)]
    whole, cut = runs_of(configs, tmp_path / "whole"), runs_of(configs, tmp_path / "cut")
    run_together(whole)
    append, signals = rundir.append_all, iter([signal.SIGTERM])

    def append_and_signal(path, records):
        append(path, records)
        for number in signals:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(rundir, "append_all", append_and_signal)
        with pytest.raises(processes.Preempted, match="step 1 of 2 runs is saved"):
            run_together(cut)
    assert [outcome.state for outcome in run_together(cut)] == [DONE] * 2
    for one, other in zip(whole, cut, strict=True):
        assert_same_bits(Path(one.workdir), Path(other.workdir))
    before = [(Path(run.workdir) / "done.json").stat().st_mtime_ns for run in cut]
    again = run_together(cut)
    assert [outcome.results for outcome in again] == [finetune.run(run.config, Path(run.workdir)) for run in cut]
    assert before == [(Path(run.workdir) / "done.json").stat().st_mtime_ns for run in cut]


def test_configs_say_what_trains_together(root, tmp_path):
    base = make_config(root, **STORED)
    configs = [
        base,
        changed(base, finetune__cache="never"),
        changed(base, seed=7, schedule={"name": "constant", "learning_rate": 1.0, "warmup_fraction": 0.0}),
        changed(base, finetune__batch_size=16),
        {**base, "phases": [{"epochs": 1}]},
        changed(base, finetune__epochs=3),
        changed(base, finetune__epochs=3, optimizer__weight_decay=0.5),
        {**base, "relative_gradients": {"num_batches": 1}},
        changed(base, optimizer__name="adamw"),
        changed(base, groups__freeze="head"),
        changed(base, finetune__freeze_statistics=True),
    ]
    runs = [*runs_of(configs, tmp_path), Run(task="extract", config=base, workdir=tmp_path / "11")]
    found = [([int(Path(run.workdir).name) for run in each.runs], each.why_alone) for each in group(runs)]
    assert found == [
        ([0, 2], None),
        ([1], "it trains from images, as finetune.cache is 'never'"),
        ([3], NO_OTHER),
        ([4], "it has phases"),
        ([5, 6], None),
        ([7], "it follows relative gradients, which are measured for each run"),
        ([8], NO_OTHER),
        ([9], NO_OTHER),
        ([10], NO_OTHER),
        ([11], "only finetune trains together, and this is extract"),
    ]
    banks = changed(base, prefix__bank=3, augment={"trivial_augment": True})
    configs = [banks, changed(banks, seed=1), changed(banks, optimizer__weight_decay=1.0)]
    assert [len(each.runs) for each in group(runs_of(configs, tmp_path))] == [2, 1]
    assert not list(tmp_path.iterdir())


def test_what_cannot_train_together_runs_alone(root, tmp_path):
    base = make_config(root, **STORED)
    begun = changed(base, seed=3)
    configs = [
        base,
        changed(base, seed=1),
        begun,
        changed(base, finetune__cache="never"),
        changed(base, schedule__learning_rate=-1.0),
    ]
    runs = runs_of(configs, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "save_tuned", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(begun, tmp_path / "2")
    waiting = run_together(runs[:3])
    assert [outcome.state for outcome in waiting] == [DONE, DONE, PENDING]
    assert waiting[2].detail == "it has begun alone"
    outcomes = run_all(runs)
    assert [outcome.state for outcome in outcomes] == [DONE] * 4 + [FAILED]
    assert "together" not in rundir.read_json(tmp_path / "2" / "env.json")[-1]
    assert outcomes[1].results == waiting[1].results


def stop(*_):
    raise KeyboardInterrupt
