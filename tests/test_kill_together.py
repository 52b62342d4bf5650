"""Runs that train together, killed with SIGKILL at any moment and started again, end with the same bits, each once."""

import functools

import jax
import numpy as np
import pytest

from tests import kill
from tests.small_runs import make_config, write_model, write_pictures
from tljax.ablation.runs import DONE, Run
from tljax.tasks import finetune, together_train
from tljax.tasks.together import run_together

KILLS = 10
FILES = ("metrics.jsonl", "tuned.safetensors", "evaluations.json", "predictions.npz", "frozen.json", "split.npz")


def study(root, folder):
    """Two seeds by two weight decays."""
    settings = {
        "execution": {"compiled_dir": str(root / "compiled")},
        "prefix": {"dtype": "float32", "batch_size": 8},
        "finetune": {"cache": "always", "evaluate_every": 4, "checkpoint_every": 3, "keep": "best", "epochs": 6},
    }
    runs = []
    for index, (seed, decay) in enumerate([(0, 0.0), (1, 0.0), (0, 0.1), (1, 0.1)]):
        optimizer = {"name": "sgd", "weight_decay": decay, "clip_norm": 1.0}
        config = make_config(root, **settings, seed=seed, optimizer=optimizer)
        runs.append(Run(task="finetune", config=config, workdir=folder / str(index)))
    return runs


def train(ready, root, folder):
    """Train the study; note each run that is tested, when its results are about to be written."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    advance, conclude = together_train._Group.advance, finetune.conclude

    def announced(self):
        advance(self)
        ready()

    @functools.wraps(conclude)
    def noted(workdir, *arguments):
        assert not (workdir / "done.json").exists()
        return conclude(workdir, *arguments)

    setattr(together_train._Group, "advance", announced)  # noqa: B010 (types)
    finetune.conclude = noted
    assert [outcome.state for outcome in run_together(study(root, folder))] == [DONE] * 4
    ready()


def done_files(folder):
    """The results there are, by what a file that was written again would differ in."""
    return {path: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*/done.json")}


@pytest.mark.slow
def test_killed_groups_end_with_the_same_bits(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    seconds = kill.finish(train, tmp_path, tmp_path / "runs" / "whole")
    killed, num_killed, done = tmp_path / "runs" / "killed", 0, {}
    for delay_s in np.random.default_rng(5).uniform(0, seconds / 6, KILLS).tolist():
        num_killed += kill.kill_after(delay_s, train, tmp_path, killed)
        now = done_files(killed)
        assert done.items() <= now.items(), "a run that was done was done again"
        done = now
    kill.finish(train, tmp_path, killed)
    assert num_killed >= KILLS // 2, (num_killed, seconds)
    assert done.items() <= done_files(killed).items()
    for run in study(tmp_path, killed):
        for name in FILES:
            whole = tmp_path / "runs" / "whole" / run.workdir.name / name
            assert (run.workdir / name).read_bytes() == whole.read_bytes(), (run.workdir, name)
    assert not list(killed.glob(".together"))
