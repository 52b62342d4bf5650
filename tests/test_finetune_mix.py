from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tljax.devices import make_mesh
from tljax.finetune.mix import Draw, Mix, apply_draw, draw, mix_batch

RNG = np.random.default_rng(5)
HEIGHT, WIDTH = 9, 12
IMAGES = RNG.normal(size=(16, HEIGHT, WIDTH, 3)).astype(np.float32)
TARGETS = RNG.dirichlet(np.ones(4), size=16).astype(np.float32)
BOTH = Mix(mixup_alpha=0.8, cutmix_alpha=1.0)
APPLY = jax.jit(apply_draw)


def make_draw(use_cutmix, share, centre=(4, 6)):
    return Draw(use_cutmix=jnp.asarray(use_cutmix), share=jnp.float32(share), centre=jnp.asarray(centre, jnp.int32))


@partial(jax.jit, static_argnames="mix")
def draw_many(keys, mix):
    return jax.vmap(lambda key: draw(key, mix, HEIGHT, WIDTH))(keys)


def draws_of(mix):
    return jax.tree.map(np.asarray, draw_many(jax.random.split(jax.random.key(0), 2000), mix))


def plain_cutmix(share, centre):
    """Yun et al., eq. 1 and 2, one image and one pixel at a time; lambda from the pixels that were kept."""
    images, height, width = IMAGES.copy(), int(HEIGHT * np.sqrt(1 - share)), int(WIDTH * np.sqrt(1 - share))
    kept = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            in_rows = centre[0] - height // 2 <= row < centre[0] + height // 2
            if in_rows and centre[1] - width // 2 <= column < centre[1] + width // 2:
                for example in range(16):
                    images[example, row, column] = IMAGES[15 - example, row, column]
            else:
                kept += 1
    kept_share = kept / (HEIGHT * WIDTH)
    return images, kept_share * TARGETS.astype(np.float64) + (1 - kept_share) * TARGETS[::-1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_mixup_is_the_weighted_mean_of_an_example_and_its_mirror(share):
    images, targets = APPLY(jnp.asarray(IMAGES), jnp.asarray(TARGETS), make_draw(False, share))
    # Zhang et al., eq. 1
    for got, given in ((images, IMAGES.astype(np.float64)), (targets, TARGETS.astype(np.float64))):
        for example in range(16):
            wanted = share * given[example] + (1 - share) * given[15 - example]
            np.testing.assert_allclose(got[example], wanted, atol=1e-6)


@pytest.mark.parametrize("centre", [(4, 6), (0, 0), (8, 11), (1, 10)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_cutmix_takes_the_box_and_counts_its_pixels(share, centre):
    images, targets = APPLY(jnp.asarray(IMAGES), jnp.asarray(TARGETS), make_draw(True, share, centre))
    wanted_images, wanted_targets = plain_cutmix(share, centre)
    np.testing.assert_array_equal(images, wanted_images)
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_allclose(targets, wanted_targets, atol=1e-6)


@pytest.mark.parametrize("use_cutmix", [False, True])
def test_a_share_of_one_leaves_every_bit(use_cutmix):
    images, targets = APPLY(jnp.asarray(IMAGES), jnp.asarray(TARGETS), make_draw(use_cutmix, 1.0))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(targets, TARGETS)


def test_the_middle_of_an_odd_batch_is_its_own_partner():
    images, targets = APPLY(jnp.asarray(IMAGES[:3]), jnp.asarray(TARGETS[:3]), make_draw(True, 0.3))
    np.testing.assert_array_equal(images[1], IMAGES[1])
    np.testing.assert_allclose(targets[1], TARGETS[1], atol=1e-6)


def test_half_precision_images_stay_so():
    images, targets = APPLY(jnp.asarray(IMAGES, jnp.bfloat16), jnp.asarray(TARGETS), make_draw(False, 0.3))
    assert (images.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)


def test_pmap_and_a_mesh_give_the_numbers_of_one_device():
    mixed = jax.jit(partial(mix_batch, mix=BOTH))
    mapped = jax.pmap(partial(mix_batch, mix=BOTH, axis_name="device"), axis_name="device", in_axes=(0, 0, None))
    parts = [values.reshape(8, 2, *values.shape[1:]) for values in (IMAGES, TARGETS)]
    spread = NamedSharding(make_mesh(jax.devices()), P(("data", "fsdp")))
    placed = [jax.device_put(values, spread) for values in (IMAGES, TARGETS)]
    keys = jax.random.split(jax.random.key(1), 6)
    assert set(draw_many(keys, BOTH).use_cutmix.tolist()) == {False, True}
    for key in keys:
        wanted = mixed(jnp.asarray(IMAGES), jnp.asarray(TARGETS), key)
        assert not np.array_equal(wanted[1], TARGETS)
        for got in (mapped(*parts, key), mixed(*placed, key)):
            for one, other in zip(got, wanted, strict=True):
                # Compilers fuse a product and a sum into one rounding, or do not.
                np.testing.assert_allclose(np.asarray(one).reshape(other.shape), other, rtol=0, atol=5e-7)


def test_a_mix_that_is_off_leaves_the_batch():
    images, targets = jnp.asarray(IMAGES), jnp.asarray(TARGETS)
    for mix in (Mix(), Mix(mixup_alpha=1.0, probability=0.0)):
        assert not mix.is_on
        assert mix_batch(images, targets, jax.random.key(0), mix) == (images, targets)
    assert Mix(mixup_alpha=0.1).is_on
    assert Mix(cutmix_alpha=0.1).is_on


@pytest.mark.parametrize(("name", "use_cutmix"), [("mixup_alpha", False), ("cutmix_alpha", True)])
def test_lambda_is_drawn_from_its_beta(name, use_cutmix):
    drawn = draws_of(Mix(**{name: 0.4}))
    assert set(drawn.use_cutmix.tolist()) == {use_cutmix}
    assert drawn.share.dtype == np.float32
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)). Of 2000 draws: 5 standard errors.
    assert abs(drawn.share.mean() - 0.5) < 5 * np.sqrt(1 / 7.2 / 2000)
    assert abs(drawn.share.var() - 1 / 7.2) < 0.01


def test_draws_follow_their_probabilities():
    drawn = draws_of(Mix(mixup_alpha=1.0, cutmix_alpha=0.1, probability=0.6, switch_probability=0.25))
    is_mixed = drawn.share < 1.0
    # Beta(0.1, 0.1) puts some of its mass within half a bit of 1, so only mixup is counted: standard error 0.013.
    assert abs(is_mixed[~drawn.use_cutmix].mean() - 0.6) < 0.065
    assert abs(drawn.use_cutmix.mean() - 0.25) < 0.05
    spread = {use: drawn.share[is_mixed & (drawn.use_cutmix == use)].var() for use in (False, True)}
    assert spread[False] < 0.1 < 0.17 < spread[True]  # 1/12 and 1/4.8


def test_boxes_may_be_centred_on_any_pixel():
    centres = draws_of(Mix(cutmix_alpha=0.4)).centre
    assert {tuple(centre) for centre in centres.tolist()} == {(i, j) for i in range(HEIGHT) for j in range(WIDTH)}


def test_mistakes_are_named_together():
    with pytest.raises(ValueError, match=r"cutmix_alpha is -1\.0, wanted .*; probability is 1\.5, wanted 0 to 1"):
        Mix(cutmix_alpha=-1.0, probability=1.5)
    with pytest.raises(ValueError, match="mixup_alpha is inf"):
        Mix(mixup_alpha=float("inf"))
    with pytest.raises(ValueError, match="switch_probability is nan"):
        Mix(switch_probability=float("nan"))
