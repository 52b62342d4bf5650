"""Training killed with SIGKILL at any moment and run again ends with the same bits."""

import dataclasses
import os
import signal
import threading

import jax
import numpy as np
import pytest

from tests import kill
from tests.finetuning import ONE, make_job
from tests.toy import toy_conv
from tljax.finetune.loop import fit
from tljax.finetune.lora import init_lora
from tljax.finetune.mix import Mix

STEPS_A_PHASE = 14
DELTA = "layer_0/conv/kernel"


def phases():
    """The head; then a stage with BatchNorm and a low-rank delta before it; then that stage without the delta.

    With mixed images and an average all the time.
    """
    net = toy_conv()
    deltas = init_lora(net.shapes, jax.random.key(1), rules=[DELTA], rank=2)
    lora = (r".*/lora_[ab]", "body")
    rules = ([(lora[0], "frozen")], [(DELTA, "frozen"), lora, ("layer_0/.*", "frozen")], [(lora[0], "frozen")])
    settings = {
        "forward": {"lora_scaling": 2.0}, "mix": Mix(mixup_alpha=0.5, cutmix_alpha=1.0), "average_decay": 0.9,
        "seed": 3, "deltas": deltas,
    }  # fmt: skip
    jobs = [
        make_job(net, 8, freeze=freeze, rules=rule, **settings)
        for freeze, rule in zip(("head", "layer_1", "layer_1"), rules, strict=True)
    ]
    return [job.phase(STEPS_A_PHASE) for job in jobs]


def train(ready, workdir, cache_dir):
    # Every process compiles the same steps; the cache makes that the work of the first.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def announced(batches):
        def announce(start_step):
            for batch in batches(start_step):
                yield batch
                # Asked for its second batch, the loop has compiled and taken a step.
                ready()

        return announce

    workdir.mkdir(exist_ok=True)
    state = fit(
        [dataclasses.replace(phase, batches=announced(phase.batches)) for phase in phases()],
        mesh=ONE,
        config={},
        checkpoint_dir=workdir / "checkpoints",
        checkpoint_every=3,
        metrics_path=workdir / "metrics.jsonl",
        frozen_path=workdir / "frozen.json",
        evaluate_every=STEPS_A_PHASE,
    )
    leaves, _ = jax.tree.flatten(jax.device_get(state))
    np.savez(workdir / "state.npz", *leaves)
    ready()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs: its folder, that of its compiled steps, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    seconds = kill.finish(train, folder / "run", folder / "cache")
    return folder / "run", folder / "cache", seconds


def assert_same_run(killed, whole):
    states = [np.load(run / "state.npz") for run in (killed, whole)]
    assert states[0].files == states[1].files
    for name in states[1].files:
        np.testing.assert_array_equal(states[0][name], states[1][name])
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_training_ends_with_the_same_bits(tmp_path, whole, kills):
    run, cache, seconds = whole
    assert kill.kill_and_finish(train, tmp_path / "killed", cache, kills=kills, within_s=seconds / 3, seed=3) > 0
    assert_same_run(tmp_path / "killed", run)


def train_and_die_saving(ready, workdir, cache_dir, after):
    """Kill this process while a checkpoint is being written, the first that begins so many checkpoints from now."""
    folder = workdir / "checkpoints"

    def watch():
        seen: set[str] = set()
        while True:
            # Listed between the creation of a temporary folder and its renaming.
            names = {path.name for path in folder.glob("*tmp*")} if folder.exists() else set()
            seen |= names
            if names and len(seen) > after:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    train(ready, workdir, cache_dir)


@pytest.mark.parametrize("saves", [(0, 1, 2), pytest.param((0, 1, 3, 0, 2), marks=pytest.mark.slow)])
def test_training_killed_inside_a_save_ends_with_the_same_bits(tmp_path, whole, saves):
    run, cache, _ = whole
    num_killed = sum(kill.dies(train_and_die_saving, tmp_path / "killed", cache, after) for after in saves)
    assert num_killed > len(saves) / 2
    kill.finish(train, tmp_path / "killed", cache)
    assert_same_run(tmp_path / "killed", run)
