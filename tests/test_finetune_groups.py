import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import TINY_VIT, tiny_vit
from tljax.finetune.groups import format_partition, make_groups, partition_table
from tljax.finetune.kinds import is_bias, is_decayed, is_norm
from tljax.finetune.optimizer import make_optimizer
from tljax.models import ARCHITECTURES, Net, VggConfig, VitConfig
from tljax.paths import stage_of

NET = tiny_vit()  # embed, block_00 .. block_03, norm, head


@functools.cache
def shallow(name):
    """The architecture with few blocks of each layer: more of them hold params of the same names."""
    config = ARCHITECTURES[name]
    if isinstance(config, VitConfig):
        return Net(dataclasses.replace(config, depth=2, num_classes=2))
    if isinstance(config, VggConfig):
        return Net(dataclasses.replace(config, num_classes=2))
    return Net(dataclasses.replace(config, depths=(2,) * len(config.depths), num_classes=2))


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
        (-1, NET.stages[:-1]),
        ("-3", NET.stages[:-3]),
        (-7, ()),
        (0.0, ()),
        (0.5, NET.stages[:3]),
        (0.49, NET.stages[:2]),
        ("0.99", NET.stages[:5]),
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


@pytest.mark.parametrize(("share", "frozen"), [(0.29, 29), (0.57, 57), (0.999, 99)])
def test_a_share_is_taken_as_written(share, frozen):
    # 0.29 * 100 is 28.999... in binary.
    stages = (*(f"block_{index:02d}" for index in range(100)), "head")
    groups = make_groups([f"{stage}/kernel" for stage in stages], stages, freeze=share)
    assert groups.train_from == stages[frozen]


def test_surgical_choice_trains_exactly_these_stages():
    groups = make_groups(NET.shapes, NET.stages, stages_trained=["block_01", "embed"])
    assert stages_with(groups, "body") == ["embed", "block_01"]
    assert stages_with(groups, "head") == []
    assert groups.trained_stages == ("embed", "block_01")
    assert groups.stage_factors == {"embed": 1.0, "block_01": 1.0}
    assert groups.multipliers == {"body": 1.0}
    with_head = make_groups(NET.shapes, NET.stages, stages_trained=["block_01", "head"])
    assert with_head.trained_stages == ("block_01", "head")


@pytest.mark.parametrize(("only", "names"), [("bias", {"bias"}), ("norm", {"bias", "scale"})])
def test_only_some_params_of_the_body(only, names):
    groups = make_groups(NET.shapes, NET.stages, freeze="block_02", only=only)
    body = {path for path, label in groups.labels.items() if label == "body"}
    late = {path for path in NET.shapes if stage_of(path) in ("block_02", "block_03", "norm")}
    if only == "bias":
        assert body == {path for path in late if path.endswith("/bias")}
    else:
        wanted = {f"block_0{index}/norm{norm}/{name}" for index in (2, 3) for norm in (1, 2) for name in names}
        assert body == {*wanted, "norm/scale", "norm/bias"}
    # The head is trained whole.
    assert {path for path, label in groups.labels.items() if label == "head"} == {
        "head/linear/kernel",
        "head/linear/bias",
    }


def test_rules_override_only():
    rules = [("block_03/mlp/fc1/kernel", "body"), ("head/linear/kernel", "frozen")]
    groups = make_groups(NET.shapes, NET.stages, freeze="block_03", only="norm", rules=rules)
    assert groups.labels["block_03/mlp/fc1/kernel"] == "body"
    assert groups.labels["block_03/mlp/fc2/kernel"] == "frozen"
    assert groups.labels["head/linear/kernel"] == "frozen"


def test_layer_decay_counts_as_timm_does():
    # timm's ViT of 4 blocks: embed 0, blocks 1..4, the norm with the last block, the head 5.
    groups = make_groups(NET.shapes, NET.stages, freeze=0, layer_decay=0.5, rates={"body": 0.1, "head": 3.0})
    powers = {"embed": 5, "block_00": 4, "block_01": 3, "block_02": 2, "block_03": 1, "norm": 1, "head": 0}
    for path in NET.shapes:
        stage = stage_of(path)
        wanted = (3.0 if stage == "head" else 0.1) * 0.5 ** powers[stage]
        assert groups.multiplier(path) == pytest.approx(wanted, rel=1e-12), path
    assert groups.multiplier("norm/scale") == pytest.approx(0.05)


def test_frozen_stages_do_not_shift_layers():
    # timm #2691
    whole = make_groups(NET.shapes, NET.stages, freeze=0, layer_decay=0.7)
    late = make_groups(NET.shapes, NET.stages, freeze="block_02", layer_decay=0.7)
    assert late.stage_factors == {stage: whole.stage_factors[stage] for stage in NET.stages[3:]}
    assert late.stage_factors["block_02"] == pytest.approx(0.7**2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_layer_falls_into_that_of_the_head(name):
    # timm #2712: params that no pattern knows were trained at the head's rate.
    net = shallow(name)
    groups = make_groups(net.shapes, net.stages, freeze=0, layer_decay=0.5)
    full = {stage for stage, factor in groups.stage_factors.items() if factor == 1}
    assert full == {"head", "pool", "pre_logits"} & {*net.stages}
    body = [stage for stage in net.stages if stage not in full and stage != "norm"]
    assert [groups.stage_factors[stage] for stage in body] == [0.5**power for power in range(len(body), 0, -1)]
    if "norm" in net.stages:
        assert groups.stage_factors["norm"] == 0.5


def test_pooling_stages_have_the_rate_of_the_head():
    net = Net(dataclasses.replace(TINY_VIT, pooling="cls", representation_width=8))
    groups = make_groups(net.shapes, net.stages, freeze=0, layer_decay=0.5)
    assert groups.stage_factors["pre_logits"] == groups.stage_factors["head"] == 1
    assert groups.stage_factors["embed"] == 0.5**5


def test_rates_rise_geometrically_from_the_first_trained_layer():
    groups = make_groups(NET.shapes, NET.stages, freeze="block_01", lowest_rate=0.01)
    # Layers 2, 3, 4 and 5: the norm is with the last block.
    wanted = {"block_01": 0.01, "block_02": 0.01 ** (2 / 3), "block_03": 0.01 ** (1 / 3), "norm": 0.01 ** (1 / 3)}
    assert groups.stage_factors == pytest.approx({**wanted, "head": 1.0}, rel=1e-12)


def test_the_first_trained_layer_may_be_that_of_a_rule():
    rules = [("block_00/norm1/.*", "norms")]
    groups = make_groups(
        NET.shapes, NET.stages, freeze="block_03", lowest_rate=0.1, rules=rules, rates={"norms": 2.0}
    )  # fmt: skip
    assert groups.stage_factors == pytest.approx({"block_00": 0.1, "block_03": 0.1**0.25, "norm": 0.1**0.25, "head": 1})
    assert groups.multiplier("block_00/norm1/scale") == pytest.approx(0.2)


def test_stage_factors_from_elsewhere():
    groups = make_groups(NET.shapes, NET.stages, freeze="norm", layer_decay=0.5, rates={"head": 3.0})
    new = groups.with_stage_factors({"embed": 0.9, "norm": 0.25, "head": 1.0})
    assert new.stage_factors == {"norm": 0.25, "head": 1.0}
    assert (new.multiplier("norm/scale"), new.multiplier("head/linear/bias")) == (0.25, 3.0)
    assert new.labels == groups.labels
    message = r"'head' has -1\.0, wanted at least 0; 'norm' is trained and has no factor; no stage 'nrm' .*'norm'"
    with pytest.raises(ValueError, match=message):
        groups.with_stage_factors({"nrm": 1.0, "head": -1.0})


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
        ({"freeze": -8}, r"freeze=-8 is no stage; .* -1\.\.-7"),
        ({"freeze": "-8"}, "freeze=-8 is no stage"),
        ({"freeze": 1.0}, r"freeze=1.0 is no stage; .* a share in \[0, 1\)"),
        ({"freeze": "-0.5"}, "freeze=-0.5 is no stage"),
        ({"freeze": float("nan")}, "freeze=nan is no stage"),
        ({"freeze": True}, "freeze=True is no stage"),
        ({}, "wanted exactly one of the two"),
        ({"freeze": 0, "stages_trained": ["head"]}, "wanted exactly one of the two"),
        ({"stages_trained": []}, "wanted a list of stages"),
        ({"stages_trained": "head"}, "wanted a list of stages"),
        ({"stages_trained": ["head", "nrm"]}, r"no stage 'nrm' \(did you mean 'norm'\?\)"),
        ({"stages_trained": ["head", "head"]}, "'head' comes twice"),
        ({"freeze": 0, "only": "biases"}, r"only='biases' \(did you mean 'bias'\?\)"),
        ({"freeze": "head", "only": "norm"}, "only='norm' matches no param of head before the head"),
        ({"freeze": 0, "layer_decay": 0.5, "lowest_rate": 0.1}, "wanted one of the two"),
        ({"freeze": 0, "layer_decay": 0.0}, "layer_decay is 0.0, wanted 0 < layer_decay <= 1"),
        ({"freeze": 0, "layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"freeze": 0, "lowest_rate": -0.1}, "lowest_rate is -0.1"),
        ({"freeze": "head", "lowest_rate": 0.1}, "only head is trained"),
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


@pytest.mark.parametrize("name", [name for name, config in ARCHITECTURES.items() if isinstance(config, VitConfig)])
def test_tokens_and_position_tables_are_undecayed(name):
    net = shallow(name)
    decayed = {path for path, leaf in net.shapes.items() if is_decayed(path, leaf.ndim)}
    assert decayed == {path for path in net.shapes if path.endswith("/kernel")}
    config, tokens = net.architecture, {"embed/pos_embed"}
    assert isinstance(config, VitConfig)
    tokens |= {"embed/cls_token"} if config.has_class_token else set()
    tokens |= {"embed/distillation_token"} if config.has_distillation_token else set()
    tokens |= {"embed/registers"} if config.num_registers else set()
    tokens |= {"pool/probe"} if config.pooling == "attention" else set()
    assert tokens == {path for path, leaf in net.shapes.items() if leaf.ndim == 3}
    assert not tokens & decayed


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_scale_is_of_a_norm_or_a_layer_scale(name):
    net = shallow(name)
    norms = {path for path in net.shapes if is_norm(path)}
    scales = {path for path in net.shapes if path.endswith("/scale") and "/layer_scale" not in path}
    assert scales == {path for path in norms if path.endswith("/scale")}
    # All norms have a bias too, and no statistic lies beside anything else.
    assert norms - scales == {path.removesuffix("scale") + "bias" for path in scales}
    assert {path.rsplit("/", 1)[0] for path in net.stat_shapes} <= {path.rsplit("/", 1)[0] for path in norms}
    assert all(net.shapes[path].ndim == 1 for path in net.shapes if is_norm(path) or is_bias(path))


def both(*norms):
    return {f"{norm}/{name}" for norm in norms for name in ("scale", "bias")}


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        (
            "resnet18",
            {
                "stem/norm",
                *(f"layer{layer}_0{block}/norm{norm}" for layer in (1, 2, 3, 4) for block in (0, 1) for norm in (1, 2)),
                *(f"layer{layer}_00/shortcut_norm" for layer in (2, 3, 4)),
            },
        ),
        ("vgg11_bn", {f"block{block}_conv{conv}/norm" for block, conv in zip("12334455", "11121212", strict=True)}),
        (
            "bit_r50x1",
            {
                "norm",
                *(
                    f"layer{layer}_0{block}/norm{norm}"
                    for layer in (1, 2, 3, 4)
                    for block in (0, 1)
                    for norm in (1, 2, 3)
                ),
            },
        ),
        ("vit_ti16", {"norm", *(f"block_0{block}/norm{norm}" for block in (0, 1) for norm in (1, 2))}),
        ("clip_vitb32", {"norm", "embed/norm", *(f"block_0{block}/norm{norm}" for block in (0, 1) for norm in (1, 2))}),
    ],
)
def test_the_norms_of_a_net(name, norms):
    assert {path for path in shallow(name).shapes if is_norm(path)} == both(*norms)


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
    tx = make_optimizer(groups, lambda step: jnp.asarray(rates)[step], name="adamw", weight_decay=0.5, clip_norm=1.0)
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
    tx = make_optimizer(groups, lambda step: 0.1, name="adamw", weight_decay=0.1, clip_norm=1.0)
    trained, frozen = groups.split(NET.shapes)
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, trained))
    counters = [leaf for leaf in leaves if leaf.ndim == 0]
    assert frozen
    assert len(leaves) - len(counters) == 2 * len(trained)
    assert sum(leaf.size * 4 for leaf in leaves if leaf.ndim) == 2 * 4 * sum(leaf.size for leaf in trained.values())


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
    assert f"{'block_03':<12} {'body':<10}" in text
    trained = sum(leaf.size for path, leaf in NET.shapes.items() if groups.is_trained(path))
    assert text.splitlines()[-1].startswith(f"trained {trained:,} of ")
    assert len(text.splitlines()) == len(rows) + 2


def test_partition_table_shows_the_rate_of_each_stage():
    groups = make_groups(NET.shapes, NET.stages, freeze="block_03", rates={"body": 0.1}, layer_decay=0.5)
    rows = partition_table(groups, NET.shapes, learning_rate=1e-3, weight_decay=0.0)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, 0, 0, 0, 0.5e-4, 0.5e-4, 1e-3])
    rows = partition_table(groups, NET.shapes, learning_rate={"body": 2e-3, "head": 1e-2}, weight_decay=0.0)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, 0, 0, 0, 1e-4, 1e-4, 1e-2])
    assert list(rows[0]) == ["stage", "label", "num_params", "is_trained", "learning_rate", "weight_decay"]
