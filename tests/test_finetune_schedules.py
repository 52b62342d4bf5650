import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.finetune.schedule_shapes import SCHEDULES
from tljax.finetune.schedules import make_schedules, warmup_cosine


def make(name, num_steps, **settings):
    given = {"learning_rate": 0.3, "warmup_fraction": 0.0, **settings}
    return make_schedules(num_steps, ["body"], name=name, **given)["body"]


def values(schedule, num_steps):
    return [np.asarray(schedule(step)) for step in range(num_steps)]


def half_cosine(begin, end, share):
    return end + (begin - end) * 0.5 * (1 + np.cos(np.pi * share))


def test_warmup_then_half_a_cosine():
    schedule = warmup_cosine(learning_rate=0.3, warmup_steps=2, num_steps=10)
    warmup = [0.1, 0.2]
    cosine = [0.15 * (1 + np.cos(np.pi * step / 8)) for step in range(9)]
    np.testing.assert_allclose(values(schedule, 11), warmup + cosine, atol=1e-7)  # float32


def test_without_warmup_it_begins_at_the_peak():
    assert warmup_cosine(learning_rate=0.3, warmup_steps=0, num_steps=4)(0) == pytest.approx(0.3)


@pytest.mark.parametrize("warmup_steps", [-1, 5, 6])
def test_the_warmup_must_end_within_the_run(warmup_steps):
    with pytest.raises(ValueError, match="warmup_steps < num_steps = 5"):
        warmup_cosine(learning_rate=0.1, warmup_steps=warmup_steps, num_steps=5)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2])
def test_the_cosine_that_ends_at_zero_is_the_one_there_was(warmup_fraction):
    got = make("cosine", 20, warmup_fraction=warmup_fraction, arguments={"final_fraction": 0.0})
    wanted = warmup_cosine(learning_rate=0.3, warmup_steps=round(20 * warmup_fraction), num_steps=20)
    np.testing.assert_array_equal(values(got, 21), values(wanted, 21))


WARMUP = [0.1, 0.2]  # of 10 steps two, to 0.3


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("constant", {}, [*WARMUP, *(0.3 for _ in range(9))]),
        (
            "cosine",
            {"final_fraction": 0.1},
            [*WARMUP, *(half_cosine(0.3, 0.03, step / 8) for step in range(9))],
        ),
        ("linear", {}, [*WARMUP, *(0.3 * (1 - step / 8) for step in range(9))]),
        ("linear", {"final_fraction": 0.5}, [*WARMUP, *(0.3 * (1 - 0.5 * step / 8) for step in range(9))]),
        ("step", {}, [*WARMUP, 0.3, 0.3, 0.3, *[0.03] * 3, *[0.003] * 3]),
        ("step", {"boundaries": [0.2, 0.9], "factor": 0.5}, [*WARMUP, *[0.15] * 7, *[0.075] * 2]),
        ("wsd", {}, [*WARMUP, *[0.3] * 6, 0.3, 0.15, 0.0]),
        ("wsd", {"decay_fraction": 0.8, "final_fraction": 0.5}, [*WARMUP, *(0.3 - 0.15 * k / 8 for k in range(9))]),
    ],
)
def test_after_the_warmup(name, arguments, wanted):
    # The default boundaries of 10 steps are 5 and, to the even neighbour of 7.5, 8.
    schedule = make(name, 10, warmup_fraction=0.2, arguments=arguments)
    np.testing.assert_allclose(values(schedule, 11), wanted, atol=1e-7)  # float32


def test_one_cycle_is_that_of_fastai():
    # fastai/callback/schedule.py: combined_cos(pct_start, lr / div, lr, lr / div_final) at the share of the run.
    peak, num_steps = 0.3, 40
    rise = [half_cosine(peak / 25, peak, step / 10) for step in range(10)]
    fall = [half_cosine(peak, peak / 1e5, step / 30) for step in range(31)]
    got = values(make("one_cycle", num_steps), num_steps + 1)
    np.testing.assert_allclose(got, rise + fall, atol=1e-7)  # float32
    assert got[0] == pytest.approx(0.012)
    assert got[10] == pytest.approx(0.3)

    arguments = {"peak_fraction": 0.5, "start_divisor": 10.0, "end_divisor": 2.0}
    rise = [half_cosine(0.03, 0.3, step / 2) for step in range(2)]
    fall = [half_cosine(0.3, 0.15, step / 2) for step in range(3)]
    np.testing.assert_allclose(values(make("one_cycle", 4, arguments=arguments), 5), rise + fall, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_pure_functions_of_the_step(name):
    schedule = make(name, 12)
    steps = jnp.arange(12)
    eager = np.asarray(values(schedule, 12))
    np.testing.assert_allclose(jax.vmap(schedule)(steps), eager, rtol=1e-5)  # compiled cosines round otherwise
    np.testing.assert_allclose([jax.jit(schedule)(step) for step in steps], eager, rtol=1e-5)
    assert eager.max() == pytest.approx(0.3)
    assert (eager > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_runs_of_few_steps_have_rates(name, num_steps):
    rates = np.asarray(values(make(name, num_steps), num_steps))
    assert (rates > 0).all()
    assert (rates <= 0.3 + 1e-7).all()


def test_labels_may_have_settings_of_their_own():
    by_label = {"head": {"name": "constant", "learning_rate": 0.9}}
    got = make_schedules(
        10, ("body", "head"), name="linear", learning_rate=0.3, warmup_fraction=0.2, by_label=by_label
    )  # fmt: skip
    assert got.keys() == {"body", "head"}
    np.testing.assert_allclose(values(got["body"], 10), [0.1, 0.2, *(0.3 * (1 - k / 8) for k in range(8))], atol=1e-7)
    # The warm-up is the section's.
    np.testing.assert_allclose(values(got["head"], 10), [0.3, 0.6, *[0.9] * 8], atol=1e-7)


def test_arguments_of_a_label_take_the_place_of_all_others():
    got = make_schedules(
        10,
        ["head"],
        name="wsd",
        learning_rate=1.0,
        warmup_fraction=0.0,
        arguments={"decay_fraction": 0.5, "final_fraction": 0.5},
        by_label={"head": {"arguments": {"final_fraction": 0.2}}, "body": {"learning_rate": 0.1}},
    )
    assert got.keys() == {"head"}
    np.testing.assert_allclose(values(got["head"], 11), [*[1.0] * 9, 0.6, 0.2], atol=1e-7)


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_is_scaled_by_the_batch(scaling, factor):
    settings = {"batch_size": 1024, "scaling": scaling}
    assert make("constant", 5, reference_batch_size=256, **settings)(0) == pytest.approx(0.3 * factor)
    assert make("constant", 5, **settings)(0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosin"}, r"no schedule 'cosin' \(did you mean 'cosine'\?\); known: constant, cosine"),
        (
            {"arguments": {"finalfraction": 0.1}},
            r"schedule 'cosine': no argument .* \(did you mean 'final_fraction'\?\)",
        ),
        ({"arguments": {"num_steps": 3}}, "schedule 'cosine': no argument 'num_steps'"),
        ({"name": "constant", "arguments": {"x": 1}}, "no argument 'x'; known: none"),
        ({"by_label": {"hed": {}}}, r"by_label: no label 'hed' \(did you mean 'head'\?\)"),
        ({"by_label": {"head": {"rate": 1}}}, r"by_label\['head'\]: no setting 'rate'"),
        ({"by_label": {"head": {"name": "lineer"}}}, r"no schedule 'lineer' \(did you mean 'linear'\?\)"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup_fraction": 1.0}, "warmup_fraction 1.0"),
        ({"warmup_fraction": -0.1}, "warmup_fraction -0.1"),
        ({"warmup_fraction": 0.97}, "warmup_steps < num_steps = 10"),
        ({"scaling": "square"}, r"no scaling 'square' \(did you mean 'sqrt'\?\)"),
        ({"reference_batch_size": 256}, "batch_size is None and reference_batch_size 256"),
        ({"reference_batch_size": 0, "batch_size": 8}, "reference_batch_size 0"),
        ({"arguments": {"final_fraction": 1.1}}, "final_fraction is 1.1"),
        ({"name": "linear", "arguments": {"final_fraction": -0.1}}, "final_fraction is -0.1"),
        ({"name": "step", "arguments": {"factor": 1.0}}, "factor is 1.0"),
        ({"name": "step", "arguments": {"boundaries": [0.5, 0.5]}}, "wanted rising shares"),
        ({"name": "step", "arguments": {"boundaries": [0.5, 1.0]}}, "wanted rising shares"),
        ({"name": "step", "arguments": {"boundaries": []}}, "wanted rising shares"),
        ({"name": "step", "warmup_fraction": 0.6}, "first boundary is step 5, before the end of the warm-up at 6"),
        ({"name": "wsd", "arguments": {"decay_fraction": 1.0}}, "decay_fraction is 1.0"),
        ({"name": "wsd", "warmup_fraction": 0.9}, "9 steps of warm-up and 2 of decay do not fit into 10"),
        ({"name": "one_cycle", "warmup_fraction": 0.1}, "warmup_steps is 1; set warmup_fraction to 0"),
        ({"name": "one_cycle", "arguments": {"peak_fraction": 0.0}}, "peak_fraction is 0.0"),
        ({"name": "one_cycle", "arguments": {"end_divisor": 0.5}}, "end_divisor is 0.5"),
    ],
)
def test_mistakes_are_named(settings, message):
    given = {"num_steps": 10, "name": "cosine", "learning_rate": 0.1, "warmup_fraction": 0.0, **settings}
    with pytest.raises(ValueError, match=message):
        make_schedules(labels=["body"], **given)
