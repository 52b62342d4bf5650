"""Every method of fine-tuning, by config, from images to what a finished run leaves behind."""

import json

import jax
import numpy as np
import pytest
from jax import core
from safetensors import safe_open
from safetensors.numpy import load_file

import tljax
from tests.small_runs import (
    RESNET,
    SIZE,
    VIT,
    apply_net,
    make_config,
    metrics_of,
    split_of,
    write_model,
    write_pictures,
)
from tljax.cli import main
from tljax.models.noise import Regularise
from tljax.paths import stage_of
from tljax.tasks import finetune, training
from tljax.tasks.inputs import open_inputs
from tljax.tasks.plan import plan_phases
from tljax.tasks.restore import restore
from tljax.weights.resample import cubic

CONSTANT = {"name": "constant", "learning_rate": 0.2, "warmup_fraction": 0.0}
# A linear probe, then the last block, then all blocks.
UNFREEZING = [
    {"groups": {"freeze": "head"}, "schedule": CONSTANT},
    {"groups": {"freeze": "block_01", "rates": {"body": 0.5}}, "epochs": 2},
    {"groups": {"freeze": "block_00", "layer_decay": 0.5}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    write_model(folder / "resnet", RESNET)
    return folder


@pytest.fixture
def watched(monkeypatch):
    """Record what the named functions of a module are given and return, as numpy."""
    calls = []

    def watch(module, name):
        function = getattr(module, name)

        def watching(*args, **settings):
            found = function(*args, **settings)
            if not any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves((args[0], found))):
                calls.append((jax.tree.map(np.array, args[0]), jax.tree.map(np.array, found)))
            return found

        monkeypatch.setattr(module, name, watching)
        return calls

    return watch


def stages_of(paths):
    return {stage_of(path) for path in paths}


def facts_of(workdir):
    with safe_open(workdir / "tuned.safetensors", framework="numpy") as file:
        return json.loads(file.metadata()["tljax"])


def assert_restores(root, workdir):
    """The restored net gives the probabilities that the run was tested on."""
    restored = restore(workdir)
    source, split = split_of(root, workdir)
    with np.load(workdir / "predictions.npz") as file:
        np.testing.assert_array_equal(file["index"], split.test)
        np.testing.assert_allclose(apply_net(restored, source, split.test), file["probabilities"], rtol=0, atol=2e-6)
    return restored


def test_phases_unfreeze_step_by_step_and_resume_to_the_same_bits(root, tmp_path, watched, monkeypatch):
    config = make_config(root, phases=UNFREEZING, finetune={"epochs": 1, "checkpoint_every": 3})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context():
        boundaries = watched(training, "enter_phase")
        finetune.run(config, whole)
    pretrained = tljax.load(config["model"]["name"], num_classes=2).params
    (probe, second), (block, third) = boundaries
    assert stages_of(probe.trained) == {"head"}
    assert np.any(probe.trained["head/linear/kernel"])
    assert stages_of(second.trained) == {"block_01", "norm", "head"}
    for path, value in second.trained.items():
        np.testing.assert_array_equal(value, (probe.trained if stage_of(path) == "head" else pretrained)[path])
    assert stages_of(third.trained) == {"block_00", "block_01", "norm", "head"}
    np.testing.assert_array_equal(third.trained["block_01/mlp/fc1/kernel"], block.trained["block_01/mlp/fc1/kernel"])
    assert stages_of(load_file(whole / "tuned.safetensors")) == stages_of(third.trained)

    # 32 training images, 8 a step: phases of 4, 8 and 4 steps, each with a schedule of its own.
    steps = [record for record in metrics_of(whole) if "loss" in record]
    assert [record["phase"] for record in steps] == [0] * 4 + [1] * 8 + [2] * 4
    rates = [record["learning_rate"] for record in steps]
    assert rates[:4] == pytest.approx([0.2] * 4)
    assert max(rates[4:]) <= 0.1 + 1e-7
    # Cosine from the peak, not from where the phase before left it.
    assert rates[12] > rates[11]
    frozen = json.loads((whole / "frozen.json").read_text())
    assert [row["phase"] for row in frozen] == [0, 1, 2]
    assert all(row["before"] == row["after"] for row in frozen)
    assert len({row["before"] for row in frozen}) == 3
    rows = json.loads((whole / "partition.json").read_text())
    assert [{row["stage"] for row in rows if row["phase"] == index and row["is_trained"]} for index in range(3)] == [
        stages_of(state.trained) for state in (probe, second, third)
    ]

    assert main_is_interrupted(config, killed, monkeypatch, "enter_phase")
    assert [record["phase"] for record in metrics_of(killed) if "loss" in record] == [0] * 4
    # In the evaluation after the last step of the second phase, whose last checkpoint is of step 9.
    assert main_is_interrupted(config, killed, monkeypatch, "predict")
    finetune.run(config, killed)
    for name in ("tuned.safetensors", "metrics.jsonl", "predictions.npz", "frozen.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def main_is_interrupted(config, workdir, monkeypatch, name):
    def interrupt(*args, **settings):
        if any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(args[0])):
            return function(*args, **settings)
        raise KeyboardInterrupt

    function = getattr(training, name)
    with monkeypatch.context() as patch:
        patch.setattr(training, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config, workdir)
    return not (workdir / "done.json").exists()


def by_hand(positions, side, new_side):
    """Resample [1 1+n d] as torch's bicubic does, the class token kept."""
    grid = positions[0, 1:].astype(np.float64).reshape(side, side, -1)
    rows = cubic(side, new_side)
    patches = np.stack([rows @ grid[:, :, channel] @ rows.T for channel in range(grid.shape[-1])], axis=-1)
    return np.concatenate([positions[:, :1], patches.reshape(1, new_side**2, -1)], axis=1)


def test_progressive_resizing_resamples_what_was_trained_and_its_average(root, tmp_path, watched):
    everything = {"freeze": 0, "rates": {}}
    phases = [
        {"image_size": 16, "groups": everything},
        {"image_size": 24, "groups": everything},
        {"image_size": 32, "groups": {"freeze": "block_01"}},
    ]
    config = make_config(root, phases=phases, finetune={"epochs": 1, "average_decay": 0.5})
    resizes = watched(training, "resize_state")
    finetune.run(config, tmp_path / "run")
    path = "embed/pos_embed"
    sides = ((4, 6), (6, 8))
    assert len(resizes) == 2
    for (side, new_side), (before, after) in zip(sides, resizes, strict=True):
        for part in ("trained", "average"):
            old, new = (getattr(state, part)[path] for state in (before, after))
            assert old.shape == (1, 1 + side**2, VIT.width)
            np.testing.assert_allclose(new, by_hand(old, side, new_side), rtol=0, atol=1e-6)
        others = {name: value for name, value in before.trained.items() if name != path}
        assert all(np.array_equal(after.trained[name], value) for name, value in others.items())
    # The positions settle in the last phase; their average, which is what is saved, goes on towards them.
    assert facts_of(tmp_path / "run")["image_size"] == 32
    tuned, resized = load_file(tmp_path / "run" / "tuned.safetensors"), resizes[1][1]
    before, after = (np.abs(average - resized.trained[path]).max() for average in (resized.average[path], tuned[path]))
    assert 0 < after < 0.6 * before
    restored = assert_restores(root, tmp_path / "run")
    assert restored.preprocess.size == 32


def test_a_resnet_of_two_sizes_keeps_frozen_statistics_and_restores(root, tmp_path):
    phases = [
        {"image_size": 24, "groups": {"freeze": "layer2_00"}},
        {"image_size": 32, "groups": {"freeze": "layer2_00"}, "cache": "always"},
    ]
    resnet = {"name": f"file:{root / 'resnet'}"}
    config = make_config(root, model=resnet, phases=phases, prefix={"dtype": "float32", "batch_size": 16})
    finetune.run(config, tmp_path / "run")
    tuned = load_file(tmp_path / "run" / "tuned.safetensors")
    original = tljax.load(resnet["name"], num_classes=2)
    # All statistics of the trained stage moved, and none of a frozen one.
    assert {path for path in tuned if path in original.stats} == {
        path for path in original.stats if stage_of(path) == "layer2_00"
    }
    assert stages_of(tuned) == {"layer2_00", "head"}
    restored = assert_restores(root, tmp_path / "run")
    assert restored.preprocess.size == 32
    frozen = [path for path in original.stats if path not in tuned]
    assert all(np.array_equal(restored.stats[path], original.stats[path]) for path in frozen)


@pytest.fixture(scope="module")
def lora_run(root):
    lora = {"rules": "query_value", "rank": 2, "alpha": 3.0}
    config = make_config(root, lora=lora, groups={"freeze": "head", "rates": {"lora": 2.0}}, model={"image_size": 16})
    finetune.run(config, root / "lora_run")
    return root / "lora_run"


def test_a_lora_run_saves_deltas_and_head_and_restores_merged(root, lora_run):
    tuned, facts = load_file(lora_run / "tuned.safetensors"), facts_of(lora_run)
    original = tljax.load(f"file:{root / 'vit'}", num_classes=2)
    kernels = [f"block_0{block}/attn/{name}/kernel" for block in (0, 1) for name in ("query", "value")]
    halves = {f"{kernel}/lora_{half}" for kernel in kernels for half in "ab"}
    assert set(tuned) == halves | {"head/linear/kernel", "head/linear/bias"}
    assert facts == {"pretrained": original.fingerprint(), "image_size": SIZE, "lora_scaling": 1.5}
    restored = assert_restores(root, lora_run)
    for path, value in original.params.items():
        wanted = np.asarray(tuned.get(path, value), np.float64)
        if path in kernels:
            # Hu et al. 2021, arXiv:2106.09685, equation 3.
            a, b = (tuned[f"{path}/lora_{half}"].astype(np.float64) for half in "ab")
            assert np.abs(b).max() > 0
            wanted = wanted + 3.0 / 2 * a @ b
        np.testing.assert_allclose(restored.params[path], wanted, rtol=0, atol=1e-7 * (path in kernels))


def test_an_exported_lora_run_gives_the_scores_of_the_run(root, lora_run, tmp_path):
    assert main(["export", str(lora_run), "--format=hf", f"--to={tmp_path / 'out'}"]) == 0
    exported = tljax.load(f"file:{tmp_path / 'out'}")
    source, split = split_of(root, lora_run)
    with np.load(lora_run / "predictions.npz") as file:
        wanted = file["probabilities"]
    np.testing.assert_allclose(apply_net(exported, source, split.test), wanted, rtol=0, atol=2e-6)
    assert exported.class_names == ("dark", "light")


def test_other_pretrained_weights_are_refused(root, lora_run):
    try:
        write_model(root / "vit", seed=1)
        with pytest.raises(ValueError, match=r"are not those that .*lora_run was trained from: params: '"):
            restore(lora_run)
    finally:
        write_model(root / "vit")
    restore(lora_run)


RICH = {
    "mix": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
    "regularise": {"dropout": 0.2, "stochastic_depth": 0.2},
    "loss": {"label_smoothing": 0.1, "class_weighting": "inverse"},
    "augment": {"views": 2, "crop_scale": (0.5, 1.0), "trivial_augment": True, "erasing_probability": 0.2},
    "finetune": {
        "keep": "best", "average_decay": 0.8, "num_parts": 2, "batch_size": 16, "epochs": 6, "evaluate_every": 2,
        "sampling": "class_balanced", "compute_dtype": "bfloat16", "use_remat": True,
    },
}  # fmt: skip


def test_all_methods_at_once_keep_the_best_average(root, tmp_path, watched):
    resnet = {"name": f"file:{root / 'resnet'}", "image_size": 32}
    config = make_config(root, model=resnet, groups={"freeze": "layer2_00"}, **RICH)
    kept = watched(finetune, "result_of")
    finetune.run(config, tmp_path / "run")
    ((state, _),) = kept
    evaluated = [record for record in metrics_of(tmp_path / "run") if "loss" not in record]
    found = [(record["val_accuracy"], record["step"] + 1) for record in evaluated]
    assert [step for _, step in found] == [2, 4, 6, 8, 10, 12]
    # Of equals the latest.
    assert int(state.step) == max(found)[1]
    (record,) = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert record["chosen"] == {"step": int(state.step)}
    # What is saved is the average of params and moving statistics, and neither is what was trained.
    tuned = load_file(tmp_path / "run" / "tuned.safetensors")
    assert set(tuned) == set(state.average)
    for path, value in tuned.items():
        np.testing.assert_array_equal(value, state.average[path])
        assert value.dtype == np.float32
    last = {**state.trained, **{path: state.stats[path] for path in tuned if path in state.stats}}
    assert not any(np.array_equal(value, last[path]) for path, value in tuned.items())
    # And what is tested: the run computes in bfloat16 (8 bits), the restored net in float32.
    source, split = split_of(root, tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        probabilities = apply_net(restore(tmp_path / "run"), source, split.test)
        np.testing.assert_allclose(file["probabilities"], probabilities, rtol=0, atol=0.02)


def test_each_section_reaches_the_step(root):
    """The step itself is tested elsewhere; here, that a section is what it is given."""
    plain, rich = make_config(root), make_config(root, **RICH)
    inputs = open_inputs(plain)
    labels = np.repeat([0, 1], (12, 36))
    (before,), (after,) = (plan_phases(config, inputs, labels) for config in (plain, rich))
    assert (before.forward.regularise, before.forward.compute_dtype, before.forward.use_remat) == (None, None, False)
    assert after.forward.regularise == Regularise(dropout=0.2, stochastic_depth=0.2)
    assert (after.forward.compute_dtype, after.forward.use_remat) == ("bfloat16", True)
    names = ("mix", "class_weights", "average_decay", "num_parts")
    assert [before.objective[name] for name in names] == [None, None, None, 1]
    assert [after.objective[name] for name in names[2:]] == [0.8, 2]
    assert after.objective["mix"].cutmix_alpha == 1.0
    # n / (k n_c): 48 / (2 * 12) and 48 / (2 * 36).
    assert after.objective["class_weights"] == pytest.approx((2.0, 2 / 3))
    assert after.augment.erasing_probability == 0.2
    # Two classes, scores of 0 but for one: -log p with p of the label 0.95 and of the other 0.05, by hand.
    scores, targets = np.array([[2.0, 0.0]], np.float32), np.array([[1.0, 0.0]], np.float32)
    shares = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
    loss = after.objective["loss"](jax.numpy.asarray(scores), jax.numpy.asarray(targets))
    assert float(loss[0]) == pytest.approx(-0.95 * np.log(shares[0]) - 0.05 * np.log(shares[1]), rel=1e-5)


def test_penalties_are_recorded_apart_from_the_loss(root, tmp_path):
    strength, head_strength = 0.3, 0.2
    penalties = {
        "l2_sp": {"strength": strength, "head_strength": head_strength},
        "distillation": {"strength": 0.5, "stages": ["norm"]},
    }
    config = make_config(root, penalties=penalties, finetune={"epochs": 1}, schedule=CONSTANT)
    finetune.run(config, tmp_path / "run")
    steps = [record for record in metrics_of(tmp_path / "run") if "loss" in record]
    # Before the first step nothing has moved: what the penalty measures is 0, and the loss is that of a zero head.
    assert steps[0]["penalty"] == 0
    assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert all(record["penalty"] > 0 for record in steps[1:])


def test_rules_of_the_config_come_before_those_of_deltas(root):
    """A probe first, deltas frozen; then a kernel trained beside its delta, and deltas with a label of their own."""
    lora = {"rules": "query_value", "rank": 2, "alpha": 3.0}
    kernel = "block_01/attn/value/kernel"
    phases = [
        {"groups": {"freeze": "head", "rules": [(".*/lora_[ab]", "frozen")]}},
        {"groups": {"freeze": "head", "rules": [(kernel, "body"), (".*/lora_b", "up")], "rates": {"up": 4.0}}},
    ]
    config = make_config(root, lora=lora, phases=phases)
    probe, deltas = plan_phases(config, open_inputs(config), np.zeros(48, np.int32))
    assert probe.groups.trained_stages == ("head",)
    labels = deltas.groups.labels
    assert labels[kernel] == "body"
    assert (labels[f"{kernel}/lora_a"], labels[f"{kernel}/lora_b"]) == ("lora", "up")
    assert labels["block_01/attn/query/kernel"] == "frozen"
