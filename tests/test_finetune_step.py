import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils

from tests.finetuning import BATCH_SIZE, ONE, assert_same_bits, make_batch, make_job
from tests.toy import toy_conv
from tljax.devices import make_mesh
from tljax.finetune.devices import make_eval_step, make_pmap_step, make_train_step, predict
from tljax.finetune.lora import init_lora
from tljax.finetune.losses import share_correct, sigmoid_cross_entropy, softmax_cross_entropy
from tljax.finetune.mix import Mix, draw
from tljax.finetune.penalties import make_penalties
from tljax.finetune.state import Fixed
from tljax.models import Net, ResNetConfig, VitConfig
from tljax.models.noise import Regularise

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


def assert_same_metrics(metrics, wanted, rtol=1e-5):
    for found, known in zip(metrics, wanted, strict=True):
        assert found.keys() == known.keys()
        for name, value in known.items():
            # Adam's first updates are of one size where a gradient is rounding alone: the norm feels every such sign.
            np.testing.assert_allclose(found[name], value, rtol=100 * rtol if name == "update_norm" else rtol)


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
    assert_same_bits(frozen.params, job.groups.split(before)[1])
    assert {*state.trained, *frozen.params} == before.keys()
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
        assert_same_metrics(metrics, metrics_of_one)
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
    step = make_train_step(functools.partial(job.body, forward=dataclasses.replace(job.forward, start=START)), ONE)
    run_prefix = jax.jit(functools.partial(job.net.apply, stop=START))
    state, frozen = job.place(ONE)
    running = Fixed(params={path: value for path, value in frozen.params.items() if path >= START})
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
    indices, probabilities = predict(make_eval_step(job.net, job.preprocess, EIGHT), job.params, {}, batches, EIGHT)
    scores = np.concatenate([scores_of(job.params, batch["image"]) for batch in batches])
    np.testing.assert_array_equal(indices, np.arange(100, 111))
    # Eight shares and one batch round differently.
    np.testing.assert_allclose(probabilities, jax.nn.softmax(scores)[:11], atol=1e-6)


MIXED = {"mix": Mix(mixup_alpha=0.5, cutmix_alpha=1.0), "seed": 5, "average_decay": 0.9}


def noisy_job(**settings):
    regularise = Regularise(dropout=0.3, stochastic_depth=0.4)
    net = Net(VitConfig(depth=2, width=16, num_heads=2, patch_size=8, image_size=16, num_classes=2))
    return make_job(net, 16, freeze="block_01", forward={"regularise": regularise}, **{**MIXED, **settings})


def test_what_is_drawn_does_not_depend_on_devices_or_parts():
    """Dropout, stochastic depth and mixing: 1 device, 8 devices, pmap over 8, and four parts one after the other."""
    job = noisy_job()
    one, _, metrics_of_one = take_steps(job, make_train_step(job.body, ONE), ONE, 2)
    eight, _, metrics_of_eight = take_steps(job, make_train_step(job.body, EIGHT), EIGHT, 2)
    in_parts = noisy_job(num_parts=4)
    four, _, metrics_of_four = take_steps(in_parts, make_train_step(in_parts.body, ONE), ONE, 2)
    step = make_pmap_step(job.body)
    state, fixed = jax_utils.replicate(job.start())
    metrics_of_pmap = []
    for index in range(2):
        shards = {key: value.reshape(8, -1, *value.shape[1:]) for key, value in make_batch(index, 16).items()}
        state, metrics = step(state, fixed, shards)
        metrics_of_pmap.append(metrics)
    others = ((eight, metrics_of_eight), (four, metrics_of_four), (jax_utils.unreplicate(state), metrics_of_pmap))
    for other, metrics in others:
        assert_same_metrics(metrics, metrics_of_one)
        assert_same_params(other.trained, one.trained, atol=1e-6)
        assert_same_params(other.average, one.average, atol=1e-6)


def test_each_step_and_each_seed_draws_anew():
    losses = []
    for seed in (5, 6):
        job = noisy_job(seed=seed, mix=None)
        state, fixed = job.place(ONE)
        step = make_train_step(job.body, ONE)
        for _ in range(2):
            # Of the same batch, and a rate so low in the first steps that the params say little.
            state, metrics = step(state, fixed, make_batch(0, 16))
            losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 4
    calm = make_job(noisy_job().net, 16, freeze="block_01")
    _, _, (metrics,) = take_steps(calm, make_train_step(calm.body, ONE), ONE, 1)
    assert float(metrics["loss"]) not in losses


def test_a_batch_in_four_parts_gives_the_gradient_of_the_whole():
    job = make_job(VIT, 16, freeze=START)
    in_parts = dataclasses.replace(job, settings={"num_parts": 4})
    whole, _, (metrics,) = take_steps(job, vit_step(ONE), ONE, 1)
    parts, _, (metrics_of_parts,) = take_steps(in_parts, make_train_step(in_parts.body, ONE), ONE, 1)
    assert_same_metrics([metrics_of_parts], [metrics], rtol=1e-6)
    # Adam's first moment is a tenth of the clipped gradient.
    for path, own in whole.opt_state.params.items():
        wanted, got = np.asarray(own[0].mu), np.asarray(parts.opt_state.params[path][0].mu)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * max(np.abs(wanted).max(), 1e-3), err_msg=path)


def test_parts_that_do_not_divide_the_batch_are_refused():
    job = make_job(VIT, 16, freeze="head", num_parts=3)
    with pytest.raises(ValueError, match="a batch of 8 cannot be run in 3 equal parts"):
        take_steps(job, make_train_step(job.body, ONE), ONE, 1)


def test_recomputing_stages_changes_no_number():
    job = make_job(VIT, 16, freeze=0)
    again = dataclasses.replace(job, forward=dataclasses.replace(job.forward, use_remat=True))
    state, _, (metrics,) = take_steps(job, make_train_step(job.body, ONE), ONE, 1)
    other, _, (metrics_again,) = take_steps(again, make_train_step(again.body, ONE), ONE, 1)
    assert_same_metrics([metrics_again], [metrics])
    assert_same_params(other.trained, state.trained, atol=1e-6)


RESNET = Net(ResNetConfig(depths=(1, 1), widths=(8, 16), stem_width=8, is_bottleneck=False, num_classes=2))


@pytest.mark.parametrize(("net", "size"), [(VIT, 16), (RESNET, 32)], ids=["vit", "resnet"])
def test_half_precision_computes_all_but_the_head_and_keeps_everything_in_full(net, size):
    """bfloat16 has 8 bits: the loss is within a few percent, and all that is kept stays float32."""
    # JAX's own attention takes its softmax in float32 by an implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        check_half_precision(net, size)


def check_half_precision(net, size):
    job = make_job(net, size, freeze=0)
    half = dataclasses.replace(job, forward=dataclasses.replace(job.forward, compute_dtype="bfloat16"))
    _, _, (metrics,) = take_steps(job, make_train_step(job.body, ONE), ONE, 1)
    state, _, (metrics_of_half,) = take_steps(half, make_train_step(half.body, ONE), ONE, 1)
    assert float(metrics["loss"]) != float(metrics_of_half["loss"])
    np.testing.assert_allclose(metrics_of_half["loss"], metrics["loss"], rtol=5e-2)
    kept = (state.trained, state.stats, state.opt_state)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    # Of the forward pass: every product is of bfloat16, but for the head's, the last.
    apply = functools.partial(half.forward.run, keys=None)
    x = jnp.zeros((2, size, size, 3))
    lines = jax.jit(apply).lower(half.params, half.stats, x).as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    operands = [line.split(" : (")[1].split(") ->")[0] for line in products]
    assert len(operands) > 4
    assert "bf16" not in operands[-1]
    assert all("f32" not in pair.replace("bf16", "") for pair in operands[:-1])


def test_average_is_an_exponential_one_of_params_and_moving_statistics():
    job = make_job(toy_conv(), 8, freeze="layer_1", average_decay=0.5)
    state, fixed = job.place(ONE)
    step = make_train_step(job.body, ONE)
    wanted = {path: np.asarray(value, np.float64) for path, value in state.average.items()}
    assert {path.split("/")[0] for path in wanted} == {"layer_1", "head"}
    assert any(path in job.stats for path in wanted)
    for index in range(3):
        state, _ = step(state, fixed, make_batch(index, 8))
        # The first steps count for more: min(decay, (1 + step) / (10 + step)).
        decay = min(0.5, (1 + index) / (10 + index))
        now = {**state.trained, **state.stats}
        wanted = {path: decay * value + (1 - decay) * np.asarray(now[path]) for path, value in wanted.items()}
    for path, value in state.average.items():
        np.testing.assert_allclose(value, wanted[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_statistics_of_frozen_stages_move_if_they_may():
    job = make_job(toy_conv(), 8, freeze="layer_1")
    adapting = dataclasses.replace(job, forward=dataclasses.replace(job.forward, adapting=job.net.stages))
    state, _, _ = take_steps(adapting, make_train_step(adapting.body, ONE), ONE, 1)
    assert all(not np.array_equal(state.stats[path], job.stats[path]) for path in job.stats)
    assert not any(path.startswith("layer_0") for path in state.trained)


def test_a_frozen_stage_leaves_nothing_out():
    """Neither in inference mode, nor where its BatchNorm follows the images."""
    net, noise = RESNET, Regularise(stochastic_depth=0.5)
    job = make_job(net, 32, freeze="head", forward={"adapting": net.stages})
    noisy = dataclasses.replace(job, forward=dataclasses.replace(job.forward, regularise=noise))
    _, _, (metrics,) = take_steps(job, make_train_step(job.body, ONE), ONE, 1)
    _, _, (metrics_of_noisy,) = take_steps(noisy, make_train_step(noisy.body, ONE), ONE, 1)
    assert metrics_of_noisy["loss"] == metrics["loss"]
    drawing = dataclasses.replace(noisy, forward=dataclasses.replace(noisy.forward, training=net.stages))
    _, _, (metrics_of_drawing,) = take_steps(drawing, make_train_step(drawing.body, ONE), ONE, 1)
    assert metrics_of_drawing["loss"] != metrics["loss"]


def test_only_the_delta_and_the_head_are_trained():
    path = "block_00/attn/query/kernel"
    deltas = init_lora(VIT.shapes, jax.random.key(0), rules=[path], rank=2)
    rules = [(".*/lora_[ab]", "body")]
    job = make_job(VIT, 16, freeze="head", rules=rules, deltas=deltas, forward={"lora_scaling": 2.0})
    state, fixed, _ = take_steps(job, make_train_step(job.body, ONE), ONE, 2)
    assert {*state.trained} == {path + "/lora_a", path + "/lora_b", "head/linear/kernel", "head/linear/bias"}
    assert_same_bits(fixed.params[path], job.params[path])
    # b moved in the first step, and through it a in the second.
    assert all(not np.array_equal(value, job.params[name]) for name, value in state.trained.items())
    assert job.groups.train_from == "block_00"


def test_class_weights_scale_the_loss_and_not_the_accuracy():
    job = make_job(VIT, 16, freeze="head")
    weighted = dataclasses.replace(job, settings={"class_weights": (0.2, 5.0)})
    _, _, (metrics,) = take_steps(job, make_train_step(job.body, ONE), ONE, 1)
    _, _, (of_weighted,) = take_steps(weighted, make_train_step(weighted.body, ONE), ONE, 1)
    batch = make_batch(0, 16)
    log_probabilities = jax.nn.log_softmax(scores_of(job.params, batch["image"]))
    losses = -np.asarray(log_probabilities)[np.arange(BATCH_SIZE), batch["label"]]
    wanted = np.sum(losses * np.array([0.2, 5.0])[batch["label"]] * batch["weight"]) / np.sum(batch["weight"])
    np.testing.assert_allclose(of_weighted["loss"], wanted, rtol=1e-5)
    assert float(of_weighted["accuracy"]) == float(metrics["accuracy"])


def test_many_labels_are_mixed_with_the_images():
    mix = Mix(mixup_alpha=1.0)
    job = make_job(toy_conv(), 8, freeze="head", loss=sigmoid_cross_entropy, correct=share_correct, mix=mix, seed=5)
    batch = {**make_batch(0, 8), "label": np.random.default_rng(0).integers(0, 2, (BATCH_SIZE, 2)).astype(np.float32)}
    state, fixed = job.place(ONE)
    _, metrics = make_train_step(job.body, ONE)(state, fixed, batch)
    share = float(draw(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 1), mix, 8, 8).share)
    assert 0.05 < share < 0.95
    images = np.asarray(job.preprocess.normalise(jnp.asarray(batch["image"])))
    mixed, targets = (share * array + (1 - share) * array[::-1] for array in (images, batch["label"]))
    scores = np.asarray(job.net.apply(job.params, job.stats, jnp.asarray(mixed))[0], np.float64)
    losses = np.mean(np.log1p(np.exp(scores)) - targets * scores, axis=1)
    right = np.mean((scores >= 0) == (targets >= 0.5), axis=1)
    for name, wanted in (("loss", losses), ("accuracy", right)):
        np.testing.assert_allclose(metrics[name], np.average(wanted, weights=batch["weight"]), rtol=1e-5)


def test_no_more_of_the_pretrained_net_is_held_than_penalties_read():
    net = toy_conv()
    settings = {
        "l2_sp": {"strength": 0.1, "head_strength": 0.1},
        "distillation": {"strength": 1.0, "stages": ("layer_1",)},
    }

    def held(*names):
        penalties = make_penalties(net.stages, {name: settings[name] for name in names})
        _, fixed = make_job(net, 8, freeze="layer_1", penalties=penalties).start()
        return [{path.split("/")[0] for path in part} for part in (fixed.original, fixed.original_stats)]

    assert held() == [set(), set()]
    assert held("l2_sp") == [{"layer_1", "head"}, set()]
    # The pretrained net runs to the tap, on its own statistics; the head is trained.
    assert held("distillation") == [{"layer_0", "layer_1", "head"}, {"layer_0", "layer_1"}]
