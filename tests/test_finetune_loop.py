import json

import jax
import numpy as np
import pytest

from tests.finetuning import SCHEDULE, assert_same_bits, make_batch, make_job
from tests.toy import toy_conv
from tljax import rundir
from tljax.finetune.loop import fit
from tljax.finetune.step import make_mesh, make_train_step

NUM_STEPS = 6
MESH = make_mesh(jax.devices()[:1])
JOB = make_job(toy_conv(), 8, freeze="layer_1")
STEP = make_train_step(JOB.body, MESH)


class KilledError(RuntimeError):
    pass


def killed_at(step_number):
    """A train step that dies when called for this step."""

    def step(state, frozen, batch):
        if int(state.step) == step_number:
            raise KilledError
        return STEP(state, frozen, batch)

    return step


def count_steps(state):
    return {"val_size": float(state.step)}


def train(workdir, train_step=STEP, batches=JOB.batches, num_steps=NUM_STEPS, evaluate=count_steps):
    state, frozen = JOB.place(MESH)
    return fit(
        state,
        frozen,
        train_step,
        batches,
        num_steps=num_steps,
        schedule=SCHEDULE,
        config={"num_steps": NUM_STEPS},
        checkpoint_dir=workdir / "checkpoints",
        checkpoint_every=3,
        metrics_path=workdir / "metrics.jsonl",
        evaluate=evaluate,
        evaluate_every=4,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return train(workdir), (workdir / "metrics.jsonl").read_text()


def test_a_run_equals_its_steps_taken_by_hand(whole):
    state, frozen = JOB.place(MESH)
    wanted = []
    for index in range(NUM_STEPS):
        state, metrics = STEP(state, frozen, make_batch(index, 8))
        rate = np.asarray(SCHEDULE(index)).item()
        wanted.append({"step": index, "learning_rate": rate, **{name: float(value) for name, value in metrics.items()}})
        if index in (3, 5):
            wanted.append({"step": index, "val_size": index + 1.0})
    assert_same_bits(whole[0], state)
    assert [json.loads(line) for line in whole[1].splitlines()] == wanted


@pytest.mark.parametrize("kills", [(0,), (1,), (2,), (3,), (4,), (5,), (1, 3, 4, 5)])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, whole, kills):
    for step_number in kills:
        with pytest.raises(KilledError):
            train(tmp_path, killed_at(step_number))
    assert_same_bits(train(tmp_path), whole[0])
    assert (tmp_path / "metrics.jsonl").read_text() == whole[1]


def test_a_finished_run_takes_no_step(tmp_path, whole):
    train(tmp_path)

    def refuse(state, frozen, batch):
        raise KilledError

    assert_same_bits(train(tmp_path, refuse), whole[0])
    assert (tmp_path / "metrics.jsonl").read_text() == whole[1]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    # The last step, after which a checkpoint is due.
    def with_a_bad_label(start_step):
        for step, batch in enumerate(JOB.batches(start_step), start_step):
            yield {**batch, "label": np.full_like(batch["label"], 99)} if step == 5 else batch

    with pytest.raises(FloatingPointError, match=r"step 5: loss is nan; the checkpoint of step 3 in"):
        train(tmp_path, batches=with_a_bad_label, evaluate=None)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["3"]
    assert [record["step"] for record in rundir.read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_batches_must_be_endless(tmp_path):
    with pytest.raises(ValueError, match="ended before step 2"):
        train(tmp_path, batches=lambda start_step: iter([make_batch(0, 8), make_batch(1, 8)]))


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="at step 6, beyond num_steps = 4"):
        train(tmp_path, num_steps=4)
