import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils

from tests.finetuning import BATCH_SIZE, assert_same_bits, make_batch, make_job
from tests.toy import toy_conv
from tljax.finetune.losses import softmax_cross_entropy
from tljax.finetune.step import make_eval_step, make_mesh, make_pmap_step, make_train_step, predict
from tljax.models import Net, VitConfig

ONE = make_mesh(jax.devices()[:1])
EIGHT = make_mesh(jax.devices())
VIT = Net(VitConfig(depth=1, width=16, num_heads=2, patch_size=8, image_size=16, num_classes=2))
START = "block_00"


@functools.cache
def vit_job():
    return make_job(VIT, 16, freeze=START)


@functools.cache
def vit_step(mesh):
    return make_train_step(vit_job().body, mesh)


@jax.jit
def scores_of(params, images):
    return VIT.apply(params, {}, vit_job().preprocess.normalise(images))[0]


def take_steps(job, step, mesh, num_steps):
    state, frozen = job.place(mesh)
    all_metrics = []
    for index in range(num_steps):
        state, metrics = step(state, frozen, make_batch(index, job.preprocess.size))
        all_metrics.append(metrics)
    return state, frozen, all_metrics


def assert_same_params(got, wanted, atol):
    assert got.keys() == wanted.keys()
    for path, param in got.items():
        # Adding one number to all scores of a query changes nothing in a softmax: the gradient of the key bias
        # is 0 but for rounding, which Adam scales up to a full step.
        if not path.endswith("attn/key/bias"):
            np.testing.assert_allclose(param, wanted[path], rtol=0, atol=atol, err_msg=path)


def test_statistics_of_a_frozen_stage_stay_behind_a_trained_one():
    job = make_job(toy_conv(), 16, freeze="head", rules=[("layer_0/conv/.*", "body")])
    state, _, _ = take_steps(job, make_train_step(job.body, ONE), ONE, 1)
    moved = {path.split("/")[0] for path in job.stats if not np.array_equal(state.stats[path], job.stats[path])}
    assert moved == {"layer_0"}


def test_a_step_equals_the_gradient_of_all_params_cut_to_the_trained():
    job, batch = vit_job(), make_batch(0, 16)
    images = job.preprocess.normalise(jnp.asarray(batch["image"]))

    def loss_of(params):
        scores, _ = job.net.apply(params, {}, images)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["label"][:, None], axis=1)[:, 0]
        return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])

    @jax.jit
    def reference(params):
        loss, grads = jax.value_and_grad(loss_of)(params)
        trained, _ = job.groups.split(params)
        grads, _ = job.groups.split(grads)
        updates, _ = job.tx.update(grads, job.tx.init(trained), trained)
        return optax.apply_updates(trained, updates), loss, optax.tree.norm(grads)

    wanted, loss, grad_norm = reference(job.params)
    state, _, (metrics,) = take_steps(job, vit_step(ONE), ONE, 1)
    # Two programs add in different orders.
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], grad_norm, rtol=1e-5)
    assert_same_params(state.trained, wanted, atol=1e-6)
    assert int(state.step) == 1


@pytest.mark.parametrize("mesh", [ONE, EIGHT], ids=["one device", "eight devices"])
def test_frozen_params_and_the_callers_arrays_keep_every_bit(mesh):
    job = vit_job()
    before = jax.tree.map(np.array, job.params)
    state, frozen, _ = take_steps(job, vit_step(mesh), mesh, 3)
    assert_same_bits(job.params, before)
    assert_same_bits(frozen, job.groups.split(before)[1])
    assert {*state.trained, *frozen} == before.keys()
    assert all(np.any(np.asarray(value) != before[path]) for path, value in state.trained.items())


def test_one_device_eight_devices_and_pmap_give_the_same_numbers():
    job = vit_job()
    one, _, metrics_of_one = take_steps(job, vit_step(ONE), ONE, 3)
    eight, _, metrics_of_eight = take_steps(job, vit_step(EIGHT), EIGHT, 3)
    step = make_pmap_step(job.body)
    state, frozen = jax_utils.replicate(job.start())
    metrics_of_pmap = []
    for index in range(3):
        shards = {key: value.reshape(8, -1, *value.shape[1:]) for key, value in make_batch(index, 16).items()}
        state, metrics = step(state, frozen, shards)
        metrics_of_pmap.append(metrics)
    # The sums over the batch are taken in another order: the last bits of the gradients differ, and Adam
    # divides small gradients by themselves. The rates are 1e-3 for the body and 1e-2 for the head.
    for other, metrics in ((eight, metrics_of_eight), (jax_utils.unreplicate(state), metrics_of_pmap)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), metrics, metrics_of_one)
        assert_same_params(other.trained, one.trained, atol=1e-6)


def test_statistics_of_frozen_stages_do_not_move():
    job = make_job(toy_conv(), 8, freeze="layer_1")
    before = jax.tree.map(np.array, job.stats)
    state, _, _ = take_steps(job, make_train_step(job.body, ONE), ONE, 2)
    step = make_pmap_step(job.body)
    # Three devices: a mean of three equal numbers need not be that number.
    mapped, frozen = jax_utils.replicate(job.start(), jax.devices()[:3])
    shards = {key: np.stack([value] * 3) for key, value in make_batch(0, 8).items()}
    mapped, _ = step(mapped, frozen, shards)
    for after in (state.stats, jax_utils.unreplicate(mapped).stats):
        assert after.keys() == before.keys()
        for path, value in after.items():
            assert np.array_equal(value, before[path]) == path.startswith("layer_0"), path


def test_examples_of_weight_zero_count_for_nothing():
    job, batch = vit_job(), make_batch(0, 16)
    batch["weight"][BATCH_SIZE // 2 :] = 0
    other = {
        key: np.concatenate([value[: BATCH_SIZE // 2], value[::-1][: BATCH_SIZE // 2]]) for key, value in batch.items()
    }
    other["weight"] = batch["weight"]
    assert not np.array_equal(batch["image"], other["image"])
    assert_same_bits(vit_step(ONE)(*job.place(ONE), other), vit_step(ONE)(*job.place(ONE), batch))


def test_without_weights_the_loss_is_the_plain_mean_of_the_loss_given():
    job = make_job(VIT, 16, freeze="head")
    loss = functools.partial(softmax_cross_entropy, label_smoothing=0.5)
    batch = {key: jnp.asarray(value) for key, value in make_batch(0, 16).items() if key != "weight"}
    _, metrics = make_train_step(functools.partial(job.body, loss=loss), ONE)(*job.place(ONE), batch)
    scores = scores_of(job.params, batch["image"])
    # Two programs round differently.
    np.testing.assert_allclose(metrics["loss"], np.mean(loss(scores, batch["label"])), rtol=1e-5)
    assert float(metrics["accuracy"]) == np.mean(np.argmax(scores, axis=1) == batch["label"])


def test_training_from_stored_activations_equals_training_from_images():
    job = vit_job()
    from_images, _, _ = take_steps(job, vit_step(ONE), ONE, 2)
    step = make_train_step(functools.partial(job.body, start=START), ONE)
    run_prefix = jax.jit(functools.partial(job.net.apply, stop=START))
    state, frozen = job.place(ONE)
    running = {path: value for path, value in frozen.items() if path >= START}
    for index in range(2):
        batch = make_batch(index, 16)
        activation, _ = run_prefix(job.params, {}, job.preprocess.normalise(jnp.asarray(batch.pop("image"))))
        state, _ = step(state, running, {**batch, "activation": activation})
    # Compiled alone, the prefix may be fused, and so rounded, in another way.
    assert_same_params(state.trained, from_images.trained, atol=1e-6)


def test_predict_drops_the_rows_that_pad():
    job = vit_job()
    images = np.concatenate([make_batch(step, 16)["image"] for step in range(2)])
    mask = np.arange(16) < 11
    batches = [
        {"image": images[part], "index": 100 + np.arange(16)[part], "mask": mask[part]}
        for part in (slice(0, 8), slice(8, 16))
    ]
    indices, probabilities = predict(make_eval_step(job.net, job.preprocess, EIGHT), job.params, {}, batches)
    scores = np.concatenate([scores_of(job.params, batch["image"]) for batch in batches])
    np.testing.assert_array_equal(indices, np.arange(100, 111))
    # Eight shares and one batch round differently.
    np.testing.assert_allclose(probabilities, jax.nn.softmax(scores)[:11], atol=1e-6)
