import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import tiny_vit, toy_conv
from tljax.finetune.groups import make_groups
from tljax.finetune.relative_gradients import choose_stages, relative_gradient_norms, rgn_factors

NET = tiny_vit()


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(rng.normal(0, 0.3 + 0.1 * len(path), leaf.shape), jnp.float32)
        for path, leaf in shapes.items()
    }


def numpy_norm(values, stage, paths):
    flat = [np.asarray(values[path], np.float64).ravel() for path in paths if path.startswith(f"{stage}/")]
    return np.sqrt(np.sum(np.concatenate(flat) ** 2))


def test_norms_are_relative_and_of_the_stages_before_the_head():
    grads, params = draw(NET.shapes, 0), draw(NET.shapes, 1)
    norms = relative_gradient_norms(grads, params, NET.stages)
    assert tuple(norms) == NET.stages[:-1]
    for stage, norm in norms.items():
        wanted = numpy_norm(grads, stage, NET.shapes) / numpy_norm(params, stage, NET.shapes)
        assert isinstance(norm, float)
        assert norm == pytest.approx(wanted, rel=1e-6), stage  # float32


def test_they_are_over_the_paths_given():
    grads, params = draw(NET.shapes, 0), draw(NET.shapes, 1)
    some = [path for path in NET.shapes if path.startswith(("block_02/attn", "norm", "head"))]
    norms = relative_gradient_norms({path: grads[path] for path in some}, params, NET.stages)
    wanted = {stage: numpy_norm(grads, stage, some) / numpy_norm(params, stage, some) for stage in ("block_02", "norm")}
    assert norms == pytest.approx(wanted, rel=1e-6)


def test_factors_have_a_highest_of_one_and_take_effect():
    net = toy_conv()
    params = draw(net.shapes, 2)
    stats = {path: jnp.ones(leaf.shape) for path, leaf in net.stat_shapes.items()}
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    grads = jax.grad(lambda params: jnp.sum(net.apply(params, stats, x)[0] ** 2))(params)
    norms = relative_gradient_norms(grads, params, net.stages)
    factors = rgn_factors(norms)
    highest = max(norms.values())
    assert factors == {stage: norm / highest for stage, norm in norms.items()} | {"head": 1.0}
    assert max(factors[stage] for stage in norms) == 1.0
    assert min(factors.values()) < 1.0
    groups = make_groups(params, net.stages, freeze=0, rates={"body": 0.5}).with_stage_factors(factors)
    for path in params:
        stage = path.split("/")[0]
        wanted = 1.0 if stage == "head" else 0.5 * norms[stage] / highest
        assert groups.multiplier(path) == pytest.approx(wanted), path


def test_factors_do_not_depend_on_the_size_of_the_head():
    grads, params = draw(NET.shapes, 0), draw(NET.shapes, 1)
    wanted = rgn_factors(relative_gradient_norms(grads, params, NET.stages))
    grads |= {path: 1e6 * grad for path, grad in grads.items() if path.startswith("head/")}
    assert rgn_factors(relative_gradient_norms(grads, params, NET.stages)) == wanted


def test_the_chosen_stages_have_the_largest_norms():
    norms = {"embed": 0.3, "block_00": 0.1, "block_01": 0.5, "block_02": 0.3, "norm": 0.2}
    assert choose_stages(norms, count=1) == ("block_01",)
    assert choose_stages(norms, count=2) == ("embed", "block_01")  # of two equal ones the first
    assert choose_stages(norms, count=4) == ("embed", "block_01", "block_02", "norm")
    chosen = choose_stages(norms, count=2)
    groups = make_groups(NET.shapes, NET.stages, stages_trained=[*chosen, "head"])
    assert groups.trained_stages == ("embed", "block_01", "head")


@pytest.mark.parametrize("count", [0, 3])
def test_so_many_stages_there_must_be(count):
    with pytest.raises(ValueError, match=rf"count is {count}, wanted 1\.\.2: the norms are of embed, norm"):
        choose_stages({"embed": 0.3, "norm": 0.1}, count=count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grads, params: grads.update({"block_0/norm1/scale": 1.0}), "1 gradients have no param, or no stage"),
        (lambda grads, params: params.pop("norm/bias"), "the first is 'norm/bias'"),
        (lambda grads, params: params.update({"x/kernel": 1.0}) or grads.update({"x/kernel": 1.0}), "'x/kernel'"),
        (lambda grads, params: grads.update({"norm/bias": jnp.full(16, jnp.inf)}), "stages norm have gradients"),
        (
            lambda grads, params: params.update({"norm/bias": jnp.zeros(16), "norm/scale": jnp.zeros(16)}),
            "stages norm have gradients that are not finite, or params that are all 0",
        ),
        (
            lambda grads, params: [grads.pop(path) for path in params if "head" not in path],
            "no gradient before the head",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    grads, params = draw(NET.shapes, 0), draw(NET.shapes, 1)
    change(grads, params)
    with pytest.raises(ValueError, match=message):
        relative_gradient_norms(grads, params, NET.stages)


def test_factors_want_a_norm_above_zero():
    with pytest.raises(ValueError, match="wanted one above 0"):
        rgn_factors({"embed": 0.0})
    with pytest.raises(ValueError, match="wanted one above 0"):
        rgn_factors({})
