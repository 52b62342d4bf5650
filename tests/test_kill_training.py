"""Training killed with SIGKILL at any moment and run again ends with the same bits."""

import jax
import numpy as np

from tests import kill
from tests.finetuning import SCHEDULE, make_job
from tests.toy import toy_conv
from tljax.finetune.loop import fit
from tljax.finetune.step import make_mesh, make_train_step

NUM_STEPS = 40


def train(ready, workdir, cache_dir):
    # Every process compiles the same step; the cache makes that the work of the first.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    job = make_job(toy_conv(), 8, freeze="layer_1")
    mesh = make_mesh(jax.devices()[:1])

    def batches(start_step):
        for batch in job.batches(start_step):
            yield batch
            # Asked for its second batch, the loop has compiled and taken a step.
            ready()

    workdir.mkdir(exist_ok=True)
    state = fit(
        *job.place(mesh),
        make_train_step(job.body, mesh),
        batches,
        num_steps=NUM_STEPS,
        schedule=SCHEDULE,
        config={},
        checkpoint_dir=workdir / "checkpoints",
        checkpoint_every=3,
        metrics_path=workdir / "metrics.jsonl",
        evaluate=None,
        evaluate_every=NUM_STEPS,
    )
    leaves, _ = jax.tree.flatten(jax.device_get(state))
    np.savez(workdir / "state.npz", *leaves)
    ready()


def test_killed_training_ends_with_the_same_bits(tmp_path):
    seconds = kill.finish(train, tmp_path / "whole", tmp_path / "cache")
    num_killed = kill.kill_and_finish(
        train, tmp_path / "killed", tmp_path / "cache", kills=10, within_s=seconds / 3, seed=3
    )
    assert num_killed > 0
    whole, killed = np.load(tmp_path / "whole" / "state.npz"), np.load(tmp_path / "killed" / "state.npz")
    assert whole.files == killed.files
    for name in whole.files:
        np.testing.assert_array_equal(killed[name], whole[name])
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
