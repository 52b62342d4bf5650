from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.finetuning import make_batch
from tests.same_numbers import NETS, NUM_STEPS, assert_same_numbers, job_of, train_by_pmap, train_on_mesh, train_on_one
from tljax.devices import fetch, make_mesh, place, put_batch, shapes_on, sharding_of
from tljax.finetune.devices import make_train_step, put_inputs


@pytest.mark.parametrize(
    ("name", "fsdp"),
    [
        ("vit", 4),
        ("resnet", 1),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("vit", 1), ("vit", 8), ("resnet", 4), ("resnet", 8))
        ),
    ],
)
def test_eight_devices_give_the_numbers_of_one(name, fsdp):
    assert_same_numbers(train_on_mesh(name, jax.devices(), fsdp), train_on_one(name))


@pytest.mark.parametrize("name", NETS)
def test_pmap_gives_the_numbers_of_one_device(name):
    """With the statistics of the whole batch, of which each device holds one example."""
    assert_same_numbers(train_by_pmap(name), train_on_one(name))


@pytest.mark.parametrize("name", NETS)
def test_the_run_that_is_compared_learns_and_draws(name):
    losses = train_on_one(name)["losses"]
    assert len({float(loss) for loss in losses}) == NUM_STEPS
    assert any(path.endswith("/var") for path in train_on_one("resnet"))


@pytest.mark.parametrize("fsdp", [1, 4])
def test_the_state_lies_where_it_should_before_and_after_a_step(fsdp):
    job, mesh = job_of("vit"), make_mesh(jax.devices(), fsdp=fsdp)
    state, fixed = job.place(mesh)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, shapes_on(state, mesh))
    after, _ = make_train_step(job.body, mesh)(state, fixed, put_inputs(make_batch(0, 16), mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == wanted
    shards = {path: {shard.data.shape for shard in leaf.addressable_shards} for path, leaf in after.trained.items()}
    cut = {path for path, shapes in shards.items() if shapes != {after.trained[path].shape}}
    large = {path for path, leaf in after.trained.items() if leaf.size >= 2**12}
    assert large
    assert cut == (large if fsdp > 1 else set())
    assert shards["block_01/mlp/fc1/kernel"] == {(64, 256 // fsdp)}
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.size >= 2**12]
    assert moments
    assert all((leaf.sharding.spec == P()) == (fsdp == 1) for leaf in moments)


def test_each_device_holds_a_quarter_and_moves_no_activation():
    """What is gathered are params, once forward and once backward at most; what is reduced are their gradients."""
    job, mesh = job_of("vit"), make_mesh(jax.devices(), fsdp=4)
    state, fixed = job.place(mesh)
    step: Any = make_train_step(job.body, mesh)
    lowered = step.lower(state, fixed, put_inputs(make_batch(0, 16), mesh))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held < 0.3 * whole
    gathered = [line for line in lowered.compile().as_text().splitlines() if " all-gather(" in line]
    shapes = {tuple(leaf.shape) for leaf in job.params.values()}
    assert gathered
    for line in gathered:
        numbers = line.split("= f32[")[1].split("]")[0]
        assert tuple(int(number) for number in numbers.split(",")) in shapes, line


def test_the_longest_axis_that_can_be_cut_is_cut():
    mesh = make_mesh(jax.devices(), fsdp=4)
    for shape, spec in (
        ((64, 256), P(None, "fsdp")),
        ((256, 64), P("fsdp")),
        ((128, 128), P(None, "fsdp")),
        ((3, 3, 62, 64), P(None, None, None, "fsdp")),
        ((63, 257), P()),
        ((16, 16), P()),
        ((), P()),
    ):
        assert sharding_of(shape, mesh) == NamedSharding(mesh, spec), shape


def test_a_placed_tree_is_a_copy_and_comes_back_whole():
    mesh = make_mesh(jax.devices(), fsdp=2)
    tree = {"a": jnp.arange(2**13, dtype=jnp.float32).reshape(64, 128), "b": np.ones(3, np.float32)}
    for leaf in jax.tree.leaves(place(tree, mesh)):
        leaf.delete()
    np.testing.assert_array_equal(fetch(place(tree, mesh))["a"], np.arange(2**13).reshape(64, 128))
    np.testing.assert_array_equal(tree["a"][0], np.arange(128))


def test_a_batch_is_spread_over_all_devices():
    mesh = make_mesh(jax.devices(), fsdp=2)
    image = put_batch({"image": np.arange(16, dtype=np.uint8).reshape(8, 2)}, mesh)["image"]
    assert image.dtype == np.uint8
    shards = sorted(image.addressable_shards, key=lambda shard: shard.index[0].start)
    assert [shard.data.tolist() for shard in shards] == [[[2 * row, 2 * row + 1]] for row in range(8)]


def test_an_fsdp_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match="fsdp is 3, which does not divide the 8 devices; wanted one of 1, 2, 4, 8"):
        make_mesh(jax.devices(), fsdp=3)
