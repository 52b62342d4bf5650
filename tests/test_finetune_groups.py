import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import tiny_vit
from tljax.finetune.groups import format_partition, is_decayed, make_groups, make_optimizer, partition_table
from tljax.paths import stage_of

NET = tiny_vit()


def stages_with(groups, label):
    return [
        stage
        for stage in NET.stages
        if label in {groups.labels[path] for path in NET.shapes if stage_of(path) == stage}
    ]


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("block_02", NET.stages[:3]),
        (3, NET.stages[:3]),
        ("3", NET.stages[:3]),
        ("head", NET.stages[:-1]),
        (0, ()),
    ],
)
def test_freeze_is_the_first_trained_stage(freeze, frozen):
    groups = make_groups(NET.shapes, NET.stages, freeze=freeze)
    assert groups.labels.keys() == NET.shapes.keys()
    assert stages_with(groups, "frozen") == list(frozen)
    assert stages_with(groups, "body") == list(NET.stages[len(frozen) : -1])
    assert stages_with(groups, "head") == ["head"]
    assert groups.train_from == NET.stages[len(frozen)]
    trained, kept = groups.split(NET.shapes)
    assert {*trained, *kept} == NET.shapes.keys()
    assert {stage_of(path) for path in kept} == set(frozen)


def test_a_rule_overrides_and_moves_the_first_trained_stage():
    rules = [(r"block_\d+/norm\d/.*", "norms"), ("head/linear/bias", "frozen")]
    groups = make_groups(NET.shapes, NET.stages, freeze="head", rates={"norms": 0.5}, rules=rules)
    assert groups.train_from == "block_00"
    assert groups.multipliers == {"head": 1.0, "norms": 0.5}
    assert groups.labels["block_03/norm2/scale"] == "norms"
    assert groups.labels["block_03/attn/query/kernel"] == "frozen"
    assert groups.labels["head/linear/bias"] == "frozen"
    assert groups.labels["head/linear/kernel"] == "head"


def test_rules_may_cover_every_path():
    groups = make_groups(NET.shapes, NET.stages, freeze=0, rules=[("head/.*", "head"), (".*", "frozen")])
    assert stages_with(groups, "head") == ["head"]
    assert groups.train_from == "head"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "blok_02"}, r"'blok_02' is no stage \(did you mean 'block_02'\?\)"),
        ({"freeze": 7}, r"freeze=7 is no stage; .* 0\.\.6"),
        ({"freeze": -1}, "freeze=-1 is no stage"),
        ({"freeze": "7"}, "freeze=7 is no stage"),
        ({"freeze": 0, "rules": [("norm/(", "body")]}, r"rule 'norm/\(' is no regular expression"),
        ({"freeze": 0, "rules": [("blocks/.*", "body")]}, "'blocks/.\\*' matches nothing"),
        ({"freeze": 0, "rates": {"boddy": 1.0}}, r"no such label \(did you mean 'body'\?\)"),
        ({"freeze": 0, "rates": {"body": 0.0}}, "wanted above 0"),
        ({"freeze": 0, "rates": {"frozen": 1.0}}, "no such label"),
        ({"freeze": 0, "rules": [("norm/.*", "norms")]}, "'norms' of a rule has no rate"),
        ({"freeze": "head", "rules": [("head/.*", "frozen")]}, "no param to train"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_groups(NET.shapes, NET.stages, **settings)


def test_params_of_another_net_are_refused():
    with pytest.raises(ValueError, match=r"\['layer1'\], which are no stages"):
        make_groups(["layer1/kernel"], NET.stages, freeze=0)


def test_undecayed_params():
    kept = {path.rsplit("/", 1)[-1] for path, leaf in NET.shapes.items() if is_decayed(path, leaf.ndim)}
    free = {path.rsplit("/", 1)[-1] for path, leaf in NET.shapes.items() if not is_decayed(path, leaf.ndim)}
    assert kept == {"kernel"}
    assert free == {"bias", "scale", "cls_token", "pos_embed"}


def numpy_adamw(params, grads_of_steps, rates, multipliers, weight_decay, clip_norm):
    """AdamW as in arXiv:1711.05101, with timm's order: the rate multiplies the decay."""
    params = {path: value.astype(np.float64) for path, value in params.items()}
    mean = {path: np.zeros_like(value) for path, value in params.items()}
    square = {path: np.zeros_like(value) for path, value in params.items()}
    for index, (grads, rate) in enumerate(zip(grads_of_steps, rates, strict=True), 1):
        norm = np.sqrt(sum(np.sum(np.square(grad.astype(np.float64))) for grad in grads.values()))
        for path, grad in grads.items():
            clipped = grad * min(1.0, clip_norm / norm)
            mean[path] = 0.9 * mean[path] + 0.1 * clipped
            square[path] = 0.999 * square[path] + 0.001 * clipped**2
            adam = mean[path] / (1 - 0.9**index) / (np.sqrt(square[path] / (1 - 0.999**index)) + 1e-8)
            decay = weight_decay if params[path].ndim > 1 and "token" not in path else 0.0
            params[path] -= rate * multipliers[path] * (adam + decay * params[path])
    return params


def test_optimizer_is_adamw_with_the_rate_on_the_decay():
    shapes = {"embed/cls_token": (1, 1, 4), "norm/scale": (4,), "head/linear/kernel": (4, 3), "head/linear/bias": (3,)}
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    # The norms lie on both sides of the bound.
    grads = [
        {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}
        for scale in (1.0, 0.01, 3.0)
    ]
    rates = [0.1, 0.2, 0.05]
    groups = make_groups(params, ("embed", "norm", "head"), freeze=0, rates={"body": 0.25, "head": 2.0})
    tx = make_optimizer(groups, lambda step: jnp.asarray(rates)[step], weight_decay=0.5, clip_norm=1.0)
    state, got, update = tx.init(params), params, jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, got)
        got = {path: value + updates[path] for path, value in got.items()}
    multipliers = {path: 2.0 if path.startswith("head") else 0.25 for path in params}
    wanted = numpy_adamw(params, grads, rates, multipliers, 0.5, 1.0)
    for path, value in got.items():
        # In float32 the bias correction 1 - 0.999**step is off by up to 6e-5 of itself, half of which is in the update.
        np.testing.assert_allclose(value, wanted[path], rtol=0, atol=1e-5, err_msg=path)


def test_no_optimizer_state_for_frozen_params():
    groups = make_groups(NET.shapes, NET.stages, freeze="block_03")
    tx = make_optimizer(groups, lambda step: 0.1, weight_decay=0.1, clip_norm=1.0)
    trained, frozen = groups.split(NET.shapes)
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, trained))
    counters = [leaf for leaf in leaves if leaf.ndim == 0]
    assert frozen
    assert len(leaves) - len(counters) == 2 * len(trained)
    assert sum(leaf.size * 4 for leaf in leaves if leaf.ndim) == 2 * 4 * sum(leaf.size for leaf in trained.values())


def test_optimizer_state_does_not_depend_on_the_grouping():
    def arrays(**settings):
        groups = make_groups(NET.shapes, NET.stages, freeze=0, **settings)
        tx = make_optimizer(groups, lambda step: 0.1, weight_decay=0.1, clip_norm=1.0)
        leaves = jax.tree.leaves_with_path(jax.eval_shape(tx.init, NET.shapes))
        return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}

    assert len(arrays()) >= 2 * len(NET.shapes)
    assert arrays() == arrays(rates={"early": 0.1}, rules=[("block_0[01]/.*", "early")])


def test_partition_table_counts_every_param_once():
    rules = [("block_03/.*/bias", "frozen")]
    groups = make_groups(NET.shapes, NET.stages, freeze="block_03", rates={"body": 0.1}, rules=rules)
    rows = partition_table(groups, NET.shapes, learning_rate=1e-3, weight_decay=0.05)
    assert sum(int(row["num_params"]) for row in rows) == sum(leaf.size for leaf in NET.shapes.values())
    assert [(row["stage"], row["label"]) for row in rows[3:]] == [
        ("block_02", "frozen"),
        ("block_03", "body"),
        ("block_03", "frozen"),
        ("norm", "body"),
        ("head", "head"),
    ]
    assert rows[4]["learning_rate"] == pytest.approx(1e-4)
    assert (rows[5]["learning_rate"], rows[6]["weight_decay"], rows[7]["weight_decay"]) == (0.0, 0.0, 0.05)
    text = format_partition(rows)
    trained = sum(leaf.size for path, leaf in NET.shapes.items() if groups.is_trained(path))
    assert text.splitlines()[-1].startswith(f"trained {trained:,} of ")
    assert len(text.splitlines()) == len(rows) + 2
