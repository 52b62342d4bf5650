import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.finetuning import make_job
from tests.toy import tiny_vit, toy_conv
from tljax.finetune.drift import drift, linear_cka, stage_cka
from tljax.models.net import Net

RNG = np.random.default_rng(11)
STAGES = ("embed", "block_00", "pool", "head")


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def make_params():
    return {"embed/kernel": draw(4, 3), "block_00/kernel": draw(3, 3), "block_00/bias": draw(3), "head/bias": draw(2)}


def test_drift_equals_its_definition():
    before, after = make_params(), make_params()
    rows = drift(before, {path: jnp.asarray(value) for path, value in after.items()}, STAGES)
    assert [row["stage"] for row in rows] == ["embed", "block_00", "head"]  # "pool" has no params
    assert [row["num_params"] for row in rows] == [12, 12, 2]
    for row in rows:
        chosen = [path for path in before if path.startswith(row["stage"] + "/")]
        a, b = (np.concatenate([one[path].astype(np.float64).ravel() for path in chosen]) for one in (after, before))
        norm_a, norm_b = np.sqrt(np.sum(a**2)), np.sqrt(np.sum(b**2))
        assert row["relative_l2"] == pytest.approx(np.sqrt(np.sum((a - b) ** 2)) / norm_b, rel=1e-12)
        assert row["cosine"] == pytest.approx(np.sum(a * b) / (norm_a * norm_b), rel=1e-12)


def test_drift_sees_a_move_that_float32_sums_would_lose():
    before = {"embed/kernel": np.full((1000, 1000), 1.0, np.float32)}
    after = {"embed/kernel": before["embed/kernel"].copy()}
    after["embed/kernel"][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    (row,) = drift(before, after, STAGES)
    assert row["relative_l2"] == pytest.approx(2.0**-23 / 1000, rel=1e-12)


def test_a_frozen_stage_has_not_moved_and_a_scaled_one_has_not_turned():
    before = make_params()
    after = {**before, "block_00/kernel": 3 * before["block_00/kernel"], "block_00/bias": 3 * before["block_00/bias"]}
    after["head/bias"] = -before["head/bias"]
    embed, block, head = drift(before, after, STAGES)
    assert (embed["relative_l2"], embed["cosine"]) == (0.0, 1.0)
    assert (block["relative_l2"], block["cosine"]) == (pytest.approx(2.0, rel=1e-6), pytest.approx(1.0, abs=1e-12))
    assert (head["relative_l2"], head["cosine"]) == (2.0, pytest.approx(-1.0))
    assert all(-1 <= row["cosine"] <= 1 for row in (embed, block, head))


def test_a_stage_of_zeros_gives_infinity_and_never_nan():
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    before = {"embed/bias": zeros, "block_00/bias": zeros, "head/bias": ones}
    rows = drift(before, {"embed/bias": ones, "block_00/bias": zeros, "head/bias": zeros}, STAGES)
    assert [row["relative_l2"] for row in rows] == [math.inf, 0.0, 1.0]
    assert [row["cosine"] for row in rows] == [0.0, 1.0, 0.0]


def test_paths_of_one_side_and_those_to_leave_out_are_not_compared():
    before, after = make_params(), make_params()
    after = {**after, "head/bias": draw(7), "block_00/lora/kernel": draw(3, 2)}
    del before["embed/kernel"]
    rows = drift(before, after, STAGES, leave_out=["head/bias"])
    assert [(row["stage"], row["num_params"]) for row in rows] == [("block_00", 12)]


def test_all_that_cannot_be_compared_is_said_at_once():
    before = {**make_params(), "blok_00/bias": draw(3)}
    after = {**before, "head/bias": draw(7)}
    message = (
        r"(?s)'blok_00' is no stage \(did you mean 'block_00'\?\)\n"
        r"  shape of 'head/bias' is \(7,\), wanted \(2,\)\n"
        r"  to leave out 'head/bais': no such path \(did you mean 'head/bias'\?\)"
    )
    with pytest.raises(ValueError, match=message):
        drift(before, after, STAGES, leave_out=["head/bais"])


def test_params_that_are_not_finite_are_refused():
    before = make_params()
    after = {**before, "block_00/bias": np.array([0, np.nan, np.inf], np.float32)}
    with pytest.raises(ValueError, match="'block_00/bias' after is not finite in 2 of 3 numbers"):
        drift(before, after, STAGES)


def exact_cka(x, y):
    """Kornblith et al. 2019: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC = tr(K H L H) / (n - 1)^2."""
    n = len(x)
    centring = np.eye(n) - np.full((n, n), 1 / n)
    kernels = [features.astype(np.float64) @ features.astype(np.float64).T for features in (x, y)]

    def hsic(one, other):
        return np.trace(one @ centring @ other @ centring) / (n - 1) ** 2

    return hsic(*kernels) / np.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))


@pytest.mark.parametrize(("n", "d1", "d2"), [(30, 6, 4), (7, 20, 9), (10, 3, 20), (2, 1, 1)])
def test_cka_equals_its_definition_in_either_space(n, d1, d2):
    x = draw(n, d1) + 100
    y = (x[:, :1] + draw(n, d2)).astype(np.float32)
    assert linear_cka(x, y) == pytest.approx(exact_cka(x, y), abs=1e-9)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (6, 30)])
def test_cka_does_not_see_rotation_scale_and_shift(n, d):
    x = RNG.normal(size=(n, d))
    rotation, _ = np.linalg.qr(RNG.normal(size=(d, d)))
    assert linear_cka(x, -7 * x @ rotation + 3) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, x) <= 1
    # Another linear map does change it.
    assert linear_cka(x, x * np.linspace(0, 3, d)) < 0.99


def test_cka_of_features_that_never_vary_is_not_a_number():
    constant = np.full((3, 4), 0.1)
    assert constant.mean(axis=0)[0] != 0.1  # so that centring by the mean alone leaves rounding
    assert math.isnan(linear_cka(draw(3, 2), constant))


@pytest.mark.parametrize("sizes", [(5, 6), (1, 1)])
def test_cka_refuses_unpaired_or_single_examples(sizes):
    with pytest.raises(ValueError, match=f"features of {sizes[0]} and {sizes[1]} examples"):
        linear_cka(draw(sizes[0], 3), draw(sizes[1], 3))


def test_cka_refuses_features_that_are_not_finite():
    broken = draw(5, 3)
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="features of 0 and 1 of 5 examples are not finite"):
        linear_cka(draw(5, 4), broken)


@pytest.fixture(scope="module")
def vit():
    job = make_job(tiny_vit(), 16, freeze=0)
    moved = {"block_01", "block_02"}
    after = {
        path: value + jnp.asarray(0.1 * draw(*value.shape)) if path.split("/")[0] in moved else value
        for path, value in job.params.items()
    }
    return job.net, (job.params, job.stats), (after, job.stats)


def test_stages_before_the_first_that_moved_are_the_same(vit):
    net, before, after = vit
    found = stage_cka(net, before, after, [draw(4, 16, 16, 3), draw(4, 16, 16, 3)])
    assert tuple(found) == net.stages[:-1]
    assert found["embed"] == pytest.approx(1.0, abs=1e-12)
    assert found["block_00"] == pytest.approx(1.0, abs=1e-12)
    assert all(0 < found[stage] < 0.9999 for stage in ("block_01", "block_02", "block_03", "norm"))


def test_stage_cka_compares_the_patches_of_valid_rows(vit):
    net, before, after = vit
    images = draw(7, 16, 16, 3)
    batches = [
        (images[:4], np.ones(4, bool)),
        (np.concatenate([images[4:], images[-1:]]), np.array([True, True, True, False])),
    ]
    found = stage_cka(net, before, after, batches)
    for stage in ("block_01", "norm"):
        stop = net.stages.index(stage) + 1
        outputs = [
            np.asarray(net.apply(*side, jnp.asarray(images), stop=stop)[0], np.float64) for side in (before, after)
        ]
        x, y = (output[:, net.prefix_tokens :].mean(axis=1) for output in outputs)
        assert found[stage] == pytest.approx(exact_cka(x, y), abs=1e-5)  # outputs are float32, of other batch sizes
    # The same rows without the row that fills up, in batches of another size.
    assert stage_cka(net, before, after, [images[:4], images[4:]]) == pytest.approx(found, abs=1e-5)


def test_stage_cka_starts_from_activations(vit):
    net, before, after = vit
    images = draw(6, 16, 16, 3)
    activations = np.asarray(net.apply(*before, jnp.asarray(images), stop="block_01")[0])
    found = stage_cka(net, before, after, [activations], start="block_01")
    whole = stage_cka(net, before, after, [images])
    assert found == pytest.approx({stage: whole[stage] for stage in net.stages[2:-1]}, abs=1e-5)


def test_stage_cka_uses_running_statistics_and_compiles_once_whatever_the_head(monkeypatch):
    traced = []

    def apply(net, *args, **kwargs):
        traced.append(net.stages[kwargs["start"]])
        return run(net, *args, **kwargs)

    run = Net.apply
    monkeypatch.setattr(Net, "apply", apply)
    job = make_job(toy_conv(), 8, freeze=0)
    stats = {path: value * 1.5 if path.startswith("layer_1") else value for path, value in job.stats.items()}
    # Without it the last ReLU lets nothing through.
    before = {**job.params, "layer_1/norm/bias": jnp.ones(4)}
    after = {**before, "head/linear/kernel": jnp.zeros((4, 9)), "head/linear/bias": jnp.zeros(9)}
    found = stage_cka(job.net, (before, job.stats), (after, stats), [draw(8, 8, 8, 3), draw(8, 8, 8, 3)])
    assert traced == ["layer_0", "layer_1"]
    assert found["layer_0"] == pytest.approx(1.0, abs=1e-12)
    assert found["layer_1"] < 0.9999


def test_stage_cka_refuses_nothing_to_compare(vit):
    net, before, after = vit
    with pytest.raises(ValueError, match="no stage to compare from 'head' on: wanted one before 'head'"):
        stage_cka(net, before, after, [], start="head")
    with pytest.raises(ValueError, match="no batches to compare on"):
        stage_cka(net, before, after, [])
