"""BatchNorm that keeps the pretrained statistics in trained stages: on bits, and against the formula in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils

from tests.finetuning import BATCH_SIZE, ONE, assert_same_bits, make_batch, make_job
from tests.test_finetune_frozen import NETS
from tljax.devices import make_mesh
from tljax.finetune.costs import count_flops, lower_step, step_batch
from tljax.finetune.devices import make_pmap_step, make_train_step
from tljax.finetune.mix import Mix
from tljax.finetune.penalties import make_penalties
from tljax.models.kernels import Kernels
from tljax.models.noise import Regularise

SIZE = 16
RESNET = NETS["resnet"]
NORMS = r".*norm\d*/(scale|bias)"
NOISE = Regularise(dropout=0.3, stochastic_depth=0.4)


def job_of(net=RESNET, *, freezes=True, forward=None, **settings):
    """A job whose updates are the gradients: SGD with a rate of 1."""
    forward = {"freeze_statistics": freezes, **(forward or {})}
    return dataclasses.replace(make_job(net, SIZE, **{"freeze": 0, **settings}, forward=forward), tx=optax.sgd(1.0))


def take_step(job, mesh=ONE):
    state, fixed = job.place(mesh)
    return make_train_step(job.body, mesh)(state, fixed, make_batch(0, SIZE))


def gradients_of(job, state):
    """From the params before and after."""
    return {path: np.asarray(job.params[path]) - np.asarray(value) for path, value in state.trained.items()}


def assert_same_gradients(got, wanted, rtol):
    assert got.keys() == wanted.keys()
    for path, gradient in wanted.items():
        # Params near 1 are stored with steps of 1e-7.
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=rtol * np.abs(gradient).max() + 2e-7, err_msg=path)


@pytest.mark.parametrize(("name", "rules"), [("resnet", ()), ("vgg_bn", [(NORMS, "frozen")])])
def test_statistics_keep_every_bit_and_params_move(name, rules):
    """With weight decay, clipping, an average, penalties, mixing and noise on."""
    net = NETS[name]
    noise = Regularise(dropout=0.2, stochastic_depth=0.2 if net.architecture.branch_stages else 0.0)
    penalties = make_penalties(net.stages, {"l2_sp": {"strength": 0.1, "head_strength": 0.1}})
    job = make_job(
        net, SIZE, freeze=0, rules=rules, forward={"freeze_statistics": True, "regularise": noise},
        penalties=penalties, average_decay=0.9, mix=Mix(mixup_alpha=0.4), seed=1,
    )  # fmt: skip
    # Far from 0, they would switch off all of a layer of four channels.
    near = {path: jnp.zeros_like(stat) if path.endswith("mean") else stat for path, stat in job.stats.items()}
    job = dataclasses.replace(job, stats=near)
    state, fixed = job.place(ONE)
    step = make_train_step(job.body, ONE)
    for index in range(2):
        state, _ = step(state, fixed, make_batch(index, SIZE))
    assert_same_bits(state.stats, job.stats)
    norms = {path for path in job.params if "norm" in path}
    assert {*fixed.params} == (norms if rules else set())
    assert norms
    assert {*state.trained} == {*job.params} - {*fixed.params}
    for path, value in state.trained.items():
        assert not np.array_equal(value, job.params[path]), path
    # There is nothing of the statistics to average.
    assert {*state.average} == {*state.trained}


def convolve(x, kernel, stride=1):
    margin = (kernel.shape[0] // 2,) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (margin, margin), dimension_numbers=numbers)


def scores_by_formula(params, stats, x, branch_factors=None):
    """The small ResNet, with the statistics as constants; `branch_factors` [b] are on the branch of the last block."""

    def normalise(place, x):
        mean, variance, scale, bias = (
            {**params, **stats}[f"{place}/{name}"][None, None, None] for name in ("mean", "var", "scale", "bias")
        )
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    def branch(stage, x, stride):
        y = jax.nn.relu(normalise(f"{stage}/norm1", convolve(x, params[f"{stage}/conv1/kernel"], stride)))
        return normalise(f"{stage}/norm2", convolve(y, params[f"{stage}/conv2/kernel"]))

    x = jax.nn.relu(normalise("stem/norm", convolve(x, params["stem/conv/kernel"], 2)))
    margins = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), margins)
    x = jax.nn.relu(x + branch("layer1_00", x, 1))
    y = branch("layer2_00", x, 2)
    if branch_factors is not None:
        y = y * branch_factors[:, None, None, None]
    shortcut = convolve(x, params["layer2_00/shortcut/kernel"], 2)
    x = jax.nn.relu(normalise("layer2_00/shortcut_norm", shortcut) + y)
    return x.mean((1, 2)) @ params["head/linear/kernel"] + params["head/linear/bias"][None]


def exactly(function, *arrays):
    """Call a function in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float64), arrays)
        return jax.tree.map(np.asarray, jax.jit(function)(*wide))


def test_the_gradient_is_that_of_constant_statistics_in_float64():
    job, batch = job_of(), make_batch(0, SIZE)
    weights = batch["weight"] / batch["weight"].sum()

    def loss(params, stats, images):
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(scores_by_formula(params, stats, images)), batch["label"][:, None], axis=1
        )
        return jnp.sum(losses[:, 0] * jnp.asarray(weights, losses.dtype))

    images = job.preprocess.normalise(jnp.asarray(batch["image"]))
    wanted_loss, wanted = exactly(jax.value_and_grad(loss), job.params, job.stats, images)
    state, metrics = take_step(job)
    # The step is in float32.
    np.testing.assert_allclose(metrics["loss"], wanted_loss, rtol=1e-5)
    gradients = gradients_of(job, state)
    assert {*gradients} == {*RESNET.shapes}
    assert_same_gradients(gradients, wanted, rtol=1e-5)
    # Where BatchNorm follows the batch all of that is something else.
    following = job_of(freezes=False)
    others = gradients_of(following, take_step(following)[0])
    assert all(np.abs(others[path] - wanted[path]).max() > 0.1 * np.abs(wanted[path]).max() for path in norms_of(job))


def norms_of(job):
    return [path for path in job.params if path.endswith("scale")]


def test_what_is_left_out_at_random_still_is():
    """Branches of some examples, and units before the classifier."""
    job, images = job_of(), make_batch(0, SIZE)["image"]
    x = job.preprocess.normalise(jnp.asarray(images))
    keys = jax.random.split(jax.random.key(3), BATCH_SIZE)

    def scores(**noise):
        forward = dataclasses.replace(job.forward, regularise=Regularise(**noise))
        return np.asarray(forward.run(job.params, job.stats, x, keys)[0])

    calm = exactly(scores_by_formula, job.params, job.stats, x)
    np.testing.assert_allclose(scores(), calm, rtol=1e-5)
    without, doubled = (
        exactly(scores_by_formula, job.params, job.stats, x, np.full(BATCH_SIZE, factor)) for factor in (0.0, 2.0)
    )
    found = scores(stochastic_depth=0.5)
    is_left_out = [np.allclose(row, wanted, rtol=1e-5) for row, wanted in zip(found, without, strict=True)]
    assert 0 < sum(is_left_out) < BATCH_SIZE
    np.testing.assert_allclose(found, np.where(np.asarray(is_left_out)[:, None], without, doubled), rtol=1e-5)
    assert all(np.abs(row - other).max() > 1e-3 for row, other in zip(scores(dropout=0.5), calm, strict=True))


def test_devices_parts_and_pmap_give_the_numbers_of_one_device():
    """Parts of a batch too: no image is normalised by another."""
    job = job_of(forward={"regularise": NOISE}, seed=5)
    state, metrics = take_step(job)
    wanted = gradients_of(job, state)
    eight = make_mesh(jax.devices())
    in_parts = job_of(forward={"regularise": NOISE}, seed=5, num_parts=4)
    again = job_of(forward={"regularise": NOISE, "use_remat": True}, seed=5)
    fused = job_of(forward={"regularise": NOISE, "kernels": Kernels(batch_norm="pallas")}, seed=5)
    for other, mesh in ((job, eight), (in_parts, ONE), (again, ONE), (fused, ONE)):
        found, metrics_of_other = take_step(other, mesh)
        assert_same_bits(found.stats, job.stats)
        np.testing.assert_allclose(metrics_of_other["loss"], metrics["loss"], rtol=1e-5)
        assert_same_gradients(gradients_of(job, found), wanted, rtol=1e-5)
    mapped, fixed = jax_utils.replicate(job.start(), jax.devices())
    shards = {key: value.reshape(8, -1, *value.shape[1:]) for key, value in make_batch(0, SIZE).items()}
    mapped, _ = make_pmap_step(job.body)(mapped, fixed, shards)
    mapped = jax_utils.unreplicate(mapped)
    assert_same_bits(mapped.stats, job.stats)
    assert_same_gradients(gradients_of(job, mapped), wanted, rtol=1e-5)


def test_a_step_takes_fewer_flops():
    def flops(freezes):
        job = job_of(freezes=freezes)
        batch = step_batch(job.forward, BATCH_SIZE, (SIZE, SIZE, 3))
        lowered, _ = lower_step(job.body, RESNET.shapes, job.groups, RESNET.stat_shapes, batch)
        return count_flops(lowered)

    assert flops(True) < flops(False)
