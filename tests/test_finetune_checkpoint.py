import contextlib
import logging
import resource
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.finetuning import assert_same_bits, make_job
from tests.toy import toy_conv
from tljax.devices import make_mesh, replicate
from tljax.finetune.checkpoint import Checkpoints

CONFIG = {"seed": 1, "optimizer": {"weight_decay": 0.05, "clip_norm": None}, "sizes": (1, 2)}


def state_of(step):
    state, _ = make_job(toy_conv(), 8, freeze="layer_1").start()
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state)


def save_steps(directory, steps, **settings):
    with Checkpoints(directory, CONFIG, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step))


def folders(directory):
    return sorted(folder.name for folder in directory.iterdir())


def test_the_latest_are_kept_and_the_last_restored(tmp_path):
    save_steps(tmp_path, [1, 2, 10], keep_latest=2)
    assert folders(tmp_path) == ["10", "2"]
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest_step == 10
        restored = checkpoints.restore(state_of(0))
    assert_same_bits(restored, state_of(10))


def test_without_a_checkpoint_the_state_comes_back(tmp_path):
    state = state_of(0)
    with Checkpoints(tmp_path / "new", CONFIG) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.restore(state) is state


def test_restore_onto_other_devices(tmp_path):
    save_steps(tmp_path, [3])
    mesh = make_mesh(jax.devices())
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(replicate(state_of(0), mesh))
    assert_same_bits(restored, state_of(3))
    assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(restored))


def test_another_config_is_refused_with_the_differences(tmp_path):
    save_steps(tmp_path, [3])
    other = {**CONFIG, "optimizer": {"weight_decay": 0.1, "clip_norm": None}, "views": 8}
    message = r"step 3 .*\n  optimizer\.weight_decay: 0\.05 there, 0\.1 now\n  views: 'absent' there, 8 now$"
    with Checkpoints(tmp_path, other) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state_of(0))


def test_an_incomplete_step_neither_counts_nor_costs_a_good_one(tmp_path, caplog):
    save_steps(tmp_path, [3, 4])
    (tmp_path / "7").mkdir()
    (tmp_path / "8" / "state").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, logger="tljax"), Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest_step == 4
        assert_same_bits(checkpoints.restore(state_of(0)), state_of(4))
        checkpoints.save(7, state_of(7))
    whole = [name for name in folders(tmp_path) if name.isdigit()]
    aside = [name for name in folders(tmp_path) if not name.isdigit()]
    assert whole == ["4", "7"]
    assert [name.rsplit("_", 1)[0] for name in aside] == ["incomplete_7", "incomplete_8"]
    assert sum("is not a whole checkpoint" in record.getMessage() for record in caplog.records) == 2


def test_a_save_does_not_see_what_happens_to_the_state_afterwards(tmp_path):
    square = jax.jit(lambda tree: jax.tree.map(jnp.square, tree), donate_argnums=0)
    tree = {"a": jnp.full((1 << 20,), 3.0)}
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, tree)
        for _ in range(3):
            tree = square(tree)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(tree)
    np.testing.assert_array_equal(restored["a"], np.full((1 << 20,), 3.0, np.float32))


def save_when_no_file_can_grow(directory, good, large, then=None):
    """Save the good steps, then one beyond what the system lets a file hold: as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Checkpoints(directory, CONFIG) as checkpoints:
            for step in good:
                checkpoints.save(step, state_of(step))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            checkpoints.save(7, large)
            if then is not None:
                raise then
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("good", "left"), [([], "no checkpoint is whole yet"), ([3], "of step 3 is whole")])
def test_a_checkpoint_that_cannot_be_written_is_named_with_what_is_left(tmp_path, good, left):
    large = {"a": jax.random.normal(jax.random.key(0), (1 << 20,))}
    with pytest.raises(OSError, match=f"cannot save a checkpoint in .*{left}; make room and run again"):
        save_when_no_file_can_grow(tmp_path, good, large)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest_step == max(good, default=None)
        checkpoints.save(7, large)


def test_the_first_error_is_the_one_that_is_told(tmp_path, caplog):
    large = {"a": jax.random.normal(jax.random.key(0), (1 << 20,))}
    with pytest.raises(FloatingPointError, match="loss is nan"), caplog.at_level(logging.ERROR, logger="tljax"):
        save_when_no_file_can_grow(tmp_path, [], large, then=FloatingPointError("loss is nan"))
    assert "cannot save a checkpoint" in caplog.text


def test_a_checkpoint_that_has_no_room_is_not_begun(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    wanted = sum(leaf.nbytes for leaf in jax.tree.leaves(state_of(0)))
    for free, fits in ((wanted - 1, False), (wanted, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with contextlib.nullcontext() if fits else pytest.raises(OSError, match=r"No space|GB left.*step 1 is whole"):
            save_steps(tmp_path, [2])
        assert folders(tmp_path) == (["1", "2"] if fits else ["1"])
