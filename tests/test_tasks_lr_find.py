"""The sweep of the learning rate: what it suggests, where it stops, and what it leaves behind."""

import json
import logging
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.small_runs import make_config, write_model, write_pictures
from tljax import rundir
from tljax.tasks import lr_find, running
from tljax.tasks.inputs import open_inputs
from tljax.tasks.lr_find import Sweep, is_blown_up, smooth, suggest
from tljax.tasks.plan import plan_phases

NUM_STEPS = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lr_find")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder


def smooth_by_hand(losses):
    """Weights 0.98^age, which sum to 1."""
    weights = 0.98 ** np.arange(len(losses))
    return [np.dot(weights[: t + 1][::-1], losses[: t + 1]) / weights[: t + 1].sum() for t in range(len(losses))]


def curve(rates):
    """Flat, then falling by 1 a decade from 1e-3 on, then rising steeply from 1e-1 on."""
    decades = np.log10(rates)
    return (3 - np.clip(decades + 3, 0, 2) + 20 * np.clip(decades + 1, 0, None)).tolist()


def test_smoothing_is_a_mean_with_weights_that_fall():
    losses = np.random.default_rng(0).normal(2, 1, 40).tolist()
    np.testing.assert_allclose(smooth(losses), smooth_by_hand(losses), rtol=1e-12)


def test_suggestions_on_a_curve_by_hand():
    rates = np.logspace(-6, 0, 601)
    found = suggest(rates.tolist(), curve(rates))
    smoothed = np.array(smooth_by_hand(curve(rates)))
    lowest = int(np.argmin(smoothed))
    # Central differences a hundredth of a decade to both sides; the lowest of them before the lowest loss.
    slopes = (smoothed[2:] - smoothed[:-2]) / 0.02
    steepest = 61 + int(np.argmin(slopes[60 : lowest - 1]))
    assert found == pytest.approx(
        {"steepest": rates[steepest], "lowest_loss": rates[lowest], "tenth": rates[lowest] / 10}
    )
    # The average follows some 50 steps, half a decade, behind: the loss falls from 1e-3 to 1e-1 and rises after that.
    assert 1e-3 < found["steepest"] < 10**-0.5
    assert 1e-1 < found["lowest_loss"] < 10**-0.5


def test_a_curve_that_falls_to_the_end_suggests_its_end():
    rates = np.logspace(-4, -1, 50)
    assert suggest(rates.tolist(), (-np.log10(rates)).tolist())["lowest_loss"] == rates[-1]


def test_a_last_loss_that_is_not_finite_counts_for_nothing():
    rates = np.logspace(-6, -0.5, 551).tolist()
    losses = curve(np.array(rates))
    assert suggest([*rates, 10.0], [*losses, math.nan]) == suggest(rates, losses)


def test_blown_up_is_four_times_the_lowest_or_not_finite():
    assert not is_blown_up([1.0] * 5)
    assert is_blown_up([1.0, math.nan])
    assert is_blown_up([1.0, math.inf])
    # Two losses weigh 0.98 and 1: the second has to be above 4 + 3 * 0.98 = 6.94.
    assert not is_blown_up([1.0, 6.93])
    assert is_blown_up([1.0, 6.95])


def test_too_short_a_sweep_says_what_to_change():
    with pytest.raises(ValueError, match=r"blew up after 3 steps, at rate 0\.3; lower lr_find\.lowest"):
        suggest([0.1, 0.2, 0.3], [1.0, 1.0, math.nan])


def test_rates_rise_at_equal_ratios_from_lowest_to_highest():
    sweep = Sweep(lowest=1e-4, highest=1.0, num_steps=41)
    rates = [sweep.rate(step) for step in range(41)]
    np.testing.assert_allclose(rates, np.logspace(-4, 0, 41), rtol=1e-12)


@pytest.mark.parametrize("mistake", [{"lowest": 0.0}, {"highest": 1e-7}, {"num_steps": 9}, {"phase": 1}, {"phase": -1}])
def test_a_sweep_that_goes_nowhere_is_refused_and_leaves_the_directory_free(root, tmp_path, mistake):
    section = {"lowest": 1e-5, "highest": 1.0, "num_steps": 20, **mistake}
    with pytest.raises(ValueError, match=r"config\.lr_find"):
        lr_find.run(make_config(root, lr_find=section), tmp_path / "run")
    assert not rundir.has_work(tmp_path / "run")


def test_the_numbers_are_those_to_write_into_the_config(root, tmp_path):
    """The steps take the rates that a run with such a config would, scaled by its batch size and by label."""
    inputs = open_inputs(make_config(root))
    sweep = Sweep(lowest=1e-3, highest=1.0, num_steps=40)
    schedule = {
        "name": "linear", "arguments": {"final_fraction": 0.1}, "learning_rate": 0.4, "reference_batch_size": 2,
        "by_label": {"body": {"learning_rate": 0.1, "scaling": "sqrt", "name": "cosine", "arguments": {}}},
    }  # fmt: skip
    (plan,) = plan_phases(make_config(root, schedule=schedule), inputs, np.zeros(48, np.int32))
    schedules = lr_find._with_sweep(plan, sweep).schedules
    for step in (0, 20, 39):
        # Batches of 8 for a reference of 2: 4 times the rate, or by the root twice a quarter of it.
        assert schedules["head"](step) == pytest.approx(4 * sweep.rate(step), rel=1e-6)
        assert schedules["body"](step) == pytest.approx(0.5 * sweep.rate(step), rel=1e-6)
    # A run with a constant rate of the config that the sweep passes through takes the step of the sweep.
    rate = sweep.rate(20)
    constant = {"name": "constant", "warmup_fraction": 0.0, "learning_rate": rate, "reference_batch_size": 2}
    (run,) = plan_phases(make_config(root, schedule=constant), inputs, np.zeros(48, np.int32))
    assert run.schedules["head"](0) == pytest.approx(schedules["head"](20), rel=1e-6)


def test_a_sweep_stops_where_the_loss_blows_up_and_is_there_the_second_time(root, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    section = {"lowest": 1e-3, "highest": 1e6, "num_steps": NUM_STEPS}
    config = make_config(root, lr_find=section, optimizer={"clip_norm": None})
    found = lr_find.run(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "lr_find.json").read_text(), parse_constant=pytest.fail)
    count = len(kept["losses"])
    assert kept["has_blown_up"]
    assert 10 < count < NUM_STEPS
    np.testing.assert_allclose(kept["rates"], np.logspace(-3, 6, NUM_STEPS)[:count], rtol=1e-6)
    losses = [math.nan if loss is None else loss for loss in kept["losses"]]
    assert is_blown_up(losses)
    assert not any(is_blown_up(losses[:length]) for length in range(1, count))
    assert f"stopped at rate {kept['rates'][-1]:.3g}" in caplog.text
    # The loss of a zero head, before any step.
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert {name: kept[name] for name in ("steepest", "tenth", "lowest_loss")} == suggest(kept["rates"], losses)
    # No rate that is suggested is one where the loss has left.
    assert found["steepest"] <= found["lowest_loss"] < kept["rates"][-1]

    picture = ElementTree.parse(tmp_path / "run" / "lr_find.svg").getroot()
    (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == sum(value is not None for value in kept["smoothed"])

    monkeypatch.setattr(running, "open_inputs", None)
    assert lr_find.run(config, tmp_path / "run") == found
    assert json.loads((tmp_path / "run" / "done.json").read_text()) == found
