import dataclasses
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.finetuning import ONE, SCHEDULE, assert_same_bits, make_batch, make_job
from tests.toy import toy_conv
from tljax import rundir
from tljax.finetune.devices import make_train_step
from tljax.finetune.loop import fit, load_best
from tljax.processes import Preempted

NUM_STEPS = 6
JOB = make_job(toy_conv(), 8, freeze="layer_1")
STEP = make_train_step(JOB.body, ONE)


class KilledError(RuntimeError):
    pass


def killed_at(step_number):
    """A train step that dies when called for this step."""

    def step(state, fixed, batch):
        if int(state.step) == step_number:
            raise KilledError
        return STEP(state, fixed, batch)

    return step


def count_steps(state, fixed):
    return {"val_size": float(state.step)}


def train(
    workdir, train_step=STEP, batches=JOB.batches, num_steps=NUM_STEPS, evaluate=count_steps, phases=None, **keep
):
    phase = JOB.phase(num_steps, train_step=train_step, batches=batches, evaluate=evaluate)
    return fit(
        [phase] if phases is None else phases,
        mesh=ONE,
        config={"num_steps": NUM_STEPS},
        checkpoint_dir=workdir / "checkpoints",
        checkpoint_every=3,
        metrics_path=workdir / "metrics.jsonl",
        frozen_path=workdir / "frozen.json",
        evaluate_every=4,
        **keep,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return train(workdir), (workdir / "metrics.jsonl").read_text()


def test_a_run_equals_its_steps_taken_by_hand(whole):
    state, fixed = JOB.place(ONE)
    wanted = []
    for index in range(NUM_STEPS):
        state, metrics = STEP(state, fixed, make_batch(index, 8))
        rate = np.asarray(SCHEDULE(index)).item()
        wanted.append(
            {
                "step": index,
                "phase": 0,
                "learning_rate": rate,
                **{name: float(value) for name, value in metrics.items()},
            }
        )
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


@pytest.mark.parametrize("told_at", [(1,), (2,), (5,), (0, 1, 3)])
def test_told_to_end_it_saves_the_step_and_goes_on_to_the_same_bits(tmp_path, whole, told_at):
    """Also where a checkpoint is due anyway, and at the last step."""

    def telling(step_number):
        def step(state, fixed, batch):
            if int(state.step) == step_number:
                os.kill(os.getpid(), signal.SIGTERM)
            return STEP(state, fixed, batch)

        return step

    before = signal.getsignal(signal.SIGTERM)
    for step_number in told_at:
        with pytest.raises(Preempted, match=rf"step {step_number + 1} is saved in"):
            train(tmp_path, telling(step_number))
        assert signal.getsignal(signal.SIGTERM) is before
        assert (tmp_path / "checkpoints" / str(step_number + 1)).exists()
    assert_same_bits(train(tmp_path), whole[0])
    assert (tmp_path / "metrics.jsonl").read_text() == whole[1]


def test_told_twice_it_does_not_wait_for_the_step(tmp_path):
    def step(state, fixed, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still here")

    with pytest.raises(Preempted, match="run the same command again"):
        train(tmp_path, step)


def test_a_finished_run_takes_no_step(tmp_path, whole):
    train(tmp_path)

    def refuse(state, fixed, batch):
        raise KilledError

    assert_same_bits(train(tmp_path, refuse), whole[0])
    assert (tmp_path / "metrics.jsonl").read_text() == whole[1]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    # The last step, after which a checkpoint is due.
    def with_a_bad_label(start_step):
        for step, batch in enumerate(JOB.batches(start_step), start_step):
            yield {**batch, "label": np.full_like(batch["label"], 99)} if step == 5 else batch

    with pytest.raises(FloatingPointError, match=r"step 5: .*loss is nan.*; the checkpoint of step 3 in"):
        train(tmp_path, batches=with_a_bad_label, evaluate=None)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["3"]
    assert [record["step"] for record in rundir.read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_a_loss_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 5: loss is .*; the checkpoint of step 3 in .* is good"):
        train(tmp_path, diverging, max_loss=100.0)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["3"]


def test_an_update_that_overflows_is_never_saved(tmp_path):
    """Loss and gradient of a step are of the params before it: only the next step's would show what it did."""
    tx = optax.chain(JOB.tx, optax.scale_by_schedule(lambda count: jnp.where(count == 5, 1e38, 1.0)))
    job = dataclasses.replace(JOB, tx=tx)
    with pytest.raises(FloatingPointError, match=r"step 5: update_norm is inf; the checkpoint of step 3 in .* is good"):
        train(tmp_path, phases=[job.phase(NUM_STEPS)])
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["3"]


def diverging(state, fixed, batch):
    """Take a step, and report for the last one a loss far above the others."""
    is_last = int(state.step) == 5
    state, metrics = STEP(state, fixed, batch)
    return state, {**metrics, "loss": metrics["loss"] + 1000.0 * is_last}


def test_batches_must_be_endless(tmp_path):
    with pytest.raises(ValueError, match="ended before step 2"):
        train(tmp_path, batches=lambda start_step: iter([make_batch(0, 8), make_batch(1, 8)]))


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="step 6 is beyond the 1 phases, which end at 4"):
        train(tmp_path, num_steps=4)


def make_three_jobs():
    """The head, then a stage more, then that stage without the head."""
    rules = ((), (), [("head/.*", "frozen")])
    return [
        make_job(toy_conv(), 8, freeze=freeze, rules=rule, average_decay=0.9)
        for freeze, rule in zip(("head", "layer_1", "layer_1"), rules, strict=True)
    ]


JOBS = make_three_jobs()
PHASES = [job.phase(3) for job in JOBS]


@pytest.fixture(scope="module")
def whole_of_three(tmp_path_factory):
    return train(tmp_path_factory.mktemp("three"), phases=PHASES)


def test_phases_equal_separate_runs_glued_by_hand(whole_of_three):
    """Params, statistics, moments and averages are carried by hand from each run to the next."""
    params, stats, moments, average = dict(JOB.params), JOB.stats, {}, {}
    for job, phase in zip(JOBS, PHASES, strict=True):
        job = dataclasses.replace(job, params=params, stats=stats)
        state, fixed = job.place(ONE)
        opt_state = state.opt_state._replace(params={**state.opt_state.params, **moments})
        opt_state = opt_state._replace(params={path: opt_state.params[path] for path in state.trained})
        number = PHASES.index(phase)
        settled = {path: params[path] for path in average if path in params and path not in state.trained}
        fixed = dataclasses.replace(fixed, params={p: v for p, v in fixed.params.items() if p not in settled})
        state = dataclasses.replace(
            state, settled=settled, opt_state=opt_state, average={**state.average, **average},
            step=state.step + 3 * number,
        )  # fmt: skip
        for batch, _ in zip(job.batches(0), range(3), strict=False):
            state, _ = phase.train_step(state, fixed, batch)
        params, stats = {**params, **state.settled, **state.trained}, state.stats
        moments, average = state.opt_state.params, state.average
    assert_same_bits(
        {**whole_of_three.settled, **whole_of_three.trained}, {p: params[p] for p in sorted(average) if p in params}
    )
    assert_same_bits(whole_of_three.stats, stats)
    assert_same_bits(whole_of_three.average, average)
    assert {path.split("/")[0] for path in whole_of_three.settled} == {"head"}


def test_what_has_settled_is_averaged_on_as_a_value_that_stays():
    state, fixed = JOBS[1].place(ONE)
    for batch, _ in zip(JOBS[1].batches(0), range(3), strict=False):
        state, _ = PHASES[1].train_step(state, fixed, batch)
    state = PHASES[2].enter(state)
    assert {path.split("/")[0] for path in state.settled} == {"head"}
    path = "head/linear/kernel"
    wanted = np.asarray(state.average[path], np.float64)
    assert np.abs(wanted - state.settled[path]).max() > 1e-6
    fixed = PHASES[2].open_fixed(state)
    for step, (batch, _) in enumerate(zip(JOBS[2].batches(0), range(3), strict=False), 3):
        state, _ = PHASES[2].train_step(state, fixed, batch)
        decay = (1 + step) / (10 + step)
        wanted = decay * wanted + (1 - decay) * np.asarray(state.settled[path])
    np.testing.assert_allclose(state.average[path], wanted, rtol=1e-6, atol=1e-8)


def test_params_that_stay_keep_their_moments_and_new_ones_start_afresh(whole_of_three):
    counts = {path: int(state[0].count) for path, state in whole_of_three.opt_state.params.items()}
    # The stage joined in the second phase: two phases of three steps.
    assert counts == dict.fromkeys(counts, 6)
    assert counts


@pytest.mark.parametrize("kills", [(1,), (3,), (4, 6, 8), (2, 5, 6, 7)])
def test_phases_killed_and_resumed_end_with_the_same_bits(tmp_path, whole_of_three, kills):
    def dying(phase, at):
        def step(state, fixed, batch):
            if int(state.step) == at:
                raise KilledError
            return phase.train_step(state, fixed, batch)

        return dataclasses.replace(phase, train_step=step)

    for at in kills:
        with pytest.raises(KilledError):
            train(tmp_path, phases=[dying(phase, at) for phase in PHASES])
    assert_same_bits(train(tmp_path, phases=PHASES), whole_of_three)
    records = rundir.read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["phase"]) for record in records] == [(step, step // 3) for step in range(9)]


def test_the_best_is_kept_beside_the_latest_and_found_again(tmp_path):
    scores = {4: 0.9, 6: 0.9, 8: 0.2, 12: 0.1, 16: 0.1}

    def evaluate(state, fixed):
        return {"val_accuracy": scores[int(state.step)]}

    phases = [JOB.phase(6, evaluate=evaluate), JOB.phase(10, evaluate=evaluate)]
    last = train(tmp_path, phases=phases, keep_best="val_accuracy")
    assert int(last.step) == 16
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    # Of two that are equally good, the later.
    assert kept == [6, 15, 16]
    best, index = load_best(
        phases, mesh=ONE, config={"num_steps": NUM_STEPS}, checkpoint_dir=tmp_path / "checkpoints",
        keep_best="val_accuracy",
    )  # fmt: skip
    assert (int(best.step), index) == (6, 0)


def test_a_frozen_param_that_moves_fails_the_run(tmp_path):
    def step(state, fixed, batch):
        state, metrics = STEP(state, fixed, batch)
        fixed.params["layer_0/conv/kernel"] = fixed.params["layer_0/conv/kernel"] + 1
        return state, metrics

    with pytest.raises(RuntimeError, match="phase 0 moved what it froze"):
        train(tmp_path, step)


def test_a_frozen_statistic_that_moves_fails_the_run(tmp_path):
    def step(state, fixed, batch):
        state, metrics = STEP(state, fixed, batch)
        moved = {path: stat + 1 if path.startswith("layer_0") else stat for path, stat in state.stats.items()}
        return dataclasses.replace(state, stats=moved), metrics

    with pytest.raises(RuntimeError, match="phase 0 moved what it froze"):
        train(tmp_path, step)


def test_what_was_frozen_is_compared_with_the_beginning_and_not_with_the_resume(tmp_path):
    """The statistic moves before the kill: the steps after it leave alone what the checkpoint holds."""

    def moving(state, fixed, batch):
        if int(state.step) == 4:
            raise KilledError
        state, metrics = STEP(state, fixed, batch)
        moved = {path: stat + 1 if path.startswith("layer_0") else stat for path, stat in state.stats.items()}
        return dataclasses.replace(state, stats=moved), metrics

    with pytest.raises(KilledError):
        train(tmp_path, moving)
    with pytest.raises(RuntimeError, match="phase 0 moved what it froze"):
        train(tmp_path)


def test_the_hashes_of_each_phase_are_kept(tmp_path):
    def dying(state, fixed, batch):
        raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, phases=[*PHASES[:2], dataclasses.replace(PHASES[2], train_step=dying)])
    begun = json.loads((tmp_path / "frozen.json").read_text())
    assert [row["phase"] for row in begun] == [0, 1, 2]
    assert [row["after"] for row in begun] == [begun[0]["before"], begun[1]["before"], None]
    state = train(tmp_path, phases=PHASES)
    ended = json.loads((tmp_path / "frozen.json").read_text())
    wanted = JOBS[2].frozen_hash(state, JOBS[2].open_fixed(state))
    assert ended == [*begun[:2], {**begun[2], "after": begun[2]["before"]}]
    assert ended[2]["after"] == wanted
    assert len({row["before"] for row in ended}) == 3


def test_a_phase_does_not_go_on_without_its_record(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, killed_at(4))
    (tmp_path / "frozen.json").unlink()
    with pytest.raises(ValueError, match=r"frozen\.json does not say what phase 0 began with"):
        train(tmp_path)
