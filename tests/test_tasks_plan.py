"""What a config of fine-tuning may not be: every refusal, before a picture is decoded or a file is written."""

import dataclasses
import re

import jax
import pytest

from tests.small_runs import RESNET, make_config, write_model, write_pictures
from tljax import rundir
from tljax.models import Net, VggConfig
from tljax.models.kernels import Kernels
from tljax.tasks import explain, finetune, relative, training
from tljax.tasks.inputs import open_inputs, open_split
from tljax.tasks.plan import plan_phases
from tljax.tasks.relative import plan_run
from tljax.tasks.sections import select

PREFIX = {"dtype": "float32", "batch_size": 16}
CACHED = {"finetune": {"cache": "always"}, "prefix": PREFIX}
NORMS = {"embed": 1.0, "block_00": 1.0, "block_01": 2.0, "norm": 1.0}
LORA = {"rules": "query_value", "rank": 2, "alpha": 3.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder


@pytest.fixture(scope="module")
def opened(root):
    """Inputs and split of the plain config, which are those of most configs here."""
    config = make_config(root)
    inputs = open_inputs(config)
    return inputs, open_split(config, inputs.source, root)


def refuse(config, opened, message):
    with pytest.raises(ValueError, match=message):
        plan_run(select("finetune", config), *opened)


# tasks/sections.py
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penaltys": {}}, r"the config of finetune: no key 'penaltys' \(did you mean 'penalties'\?\)"),
        ({"loss": None}, r"the config of finetune: key 'loss' is missing. Valid keys: .*schedule"),
        ({"schedule": {"warmup": 3}}, r"config\.schedule: no key 'warmup' \(did you mean 'warmup_fraction'\?\)"),
        ({"lora": {"rank": 2}}, r"config\.lora: key 'alpha' is missing; key 'rules' is missing"),
        ({"schedule": {"batch_size": 8}}, r"config\.schedule: no key 'batch_size'"),
        ({"mix": {"mixup": 0.1}}, r"config\.mix: no key 'mixup' \(did you mean 'mixup_alpha'\?\)"),
        ({"relative_gradients": {"count": 1}}, r"config\.relative_gradients: key 'num_batches' is missing"),
    ],
)
def test_sections_and_keys_that_do_not_fit_are_named(root, opened, changes, message):
    refuse(make_config(root, **changes), opened, message)


# tasks/recipe.py
@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"epochs": 0, "num_parts": 0}, r"config\.finetune: epochs is 0, wanted at least 1; num_parts is 0, wanted"),
        ({"checkpoint_every": 0}, r"checkpoint_every is 0, wanted at least 1"),
        ({"evaluate_every": -1}, r"evaluate_every is -1, wanted at least 1"),
        ({"keep": "first"}, r"keep is 'first', wanted 'last' or 'best'"),
        ({"compute_dtype": "float16"}, r"compute_dtype is 'float16', wanted 'float32' or 'bfloat16'"),
        ({"average_decay": 1.0}, r"average_decay is 1\.0, wanted a number between 0 and 1, or None"),
        ({"cache": "always", "adapt_statistics": True}, r"adapt_statistics moves what a cache stores"),
        ({"adapt_statistics": True, "freeze_statistics": True}, r"moves the statistics that freeze_statistics keeps"),
        ({"batch_size": 12}, r"batch_size is 12, which 8 devices cannot share evenly; wanted a multiple of 8"),
        ({"batch_size": 8, "num_parts": 2}, r"cannot share evenly in 2 parts; wanted a multiple of 16"),
        ({"batch_size": 104}, r"3 epochs of 32 training images do not fill one batch of 104; lower batch_size"),
        ({"sampling": "balanced"}, r"no sampling 'balanced'.* known: uniform, class_balanced"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(root, opened, finetune, message):
    refuse(make_config(root, finetune=finetune), opened, message)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], r"config\.phases is empty; leave it out for a run of one phase"),
        ([{}, {"epoch": 2}], r"config\.phases\[1\]: no key 'epoch' \(did you mean 'epochs'\?\)"),
        ([{"epochs": 0}], r"config\.finetune: epochs is 0, wanted at least 1"),
        ([{"schedule": {"name": "constant"}}], r"config\.schedule: key 'learning_rate' is missing"),
        ([{}, {"groups": {"freeze": "block_02"}}], r"'block_02' is no stage"),
        (
            [{"groups": {"freeze": 0}}, {"cache": "always"}],
            r"config\.phases\[1\]: block_00, embed are before 'block_01' and are trained by an earlier phase, so their "
            r"activations cannot be computed beforehand; set its cache to 'never'",
        ),
    ],
)
def test_phases_that_do_not_fit_are_refused(root, opened, phases, message):
    refuse(make_config(root, phases=phases, prefix=PREFIX), opened, message)


# tasks/plan.py
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**CACHED, "groups": {"freeze": 0}}, r"cache: nothing is frozen, so there is no prefix"),
        ({"finetune": {"cache": "always"}}, r"cache needs a section config\.prefix, such as dict\("),
        ({**CACHED, "mix": {"mixup_alpha": 0.2}}, r"config\.mix blends images; set it to 'never', or leave mix out"),
        ({**CACHED, "augment": {"trivial_augment": True}}, r"makes every image new, .* set config\.prefix\.bank"),
        (
            {**CACHED, "penalties": {"distillation": {"strength": 1.0, "stages": ["block_00"]}}},
            r"config\.penalties: what block_00 gives cannot change, as the first trained stage is 'block_01'",
        ),
        (
            {"groups": {"freeze": "head"}, "regularise": {"stochastic_depth": 0.1}},
            r"stochastic_depth is drawn by trained stages only, and those that it is for are frozen: block_01; train",
        ),
        (
            {"penalties": {"bss": {"strength": 1.0, "num_smallest": 9, "stage": "norm"}}},
            r"config\.penalties: bss: num_smallest is 9, and a batch has 8 images; lower it",
        ),
        (
            {
                "penalties": {"bss": {"strength": 1.0, "num_smallest": 9, "stage": "norm"}},
                "finetune": {"batch_size": 16, "num_parts": 2},
            },
            r"num_smallest is 9, and a part of a batch has 8 images",
        ),
        ({"penalties": {"l2": {"strength": 1.0}}}, r"l2: no such penalty.* penalties are l2_sp, bss, distillation"),
        ({"split": {"val_fraction": 0.0}, "finetune": {"keep": "best"}}, r"keep is 'best', .* no validation images"),
        # One image of 200 rounds to none of 80.
        ({"split": {"val_fraction": 0.005}, "finetune": {"keep": "best"}}, r"keep is 'best', .* no validation images"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(root, opened, changes, message):
    config = make_config(root, **changes)
    inputs, split = opened
    split = open_split(config, inputs.source, root) if "split" in changes else split
    refuse(config, (inputs, split), message)


def test_a_net_without_branches_has_none_to_leave_out(root, opened):
    net = Net(VggConfig(convolutions=(1,), widths=(4,), use_norm=False, hidden_width=0, num_classes=2, pool_grid=1))
    params, stats = net.init(jax.random.key(0))
    vgg = dataclasses.replace(opened[0].pretrained, net=net, params=params, stats=stats)
    config = make_config(root, groups={"freeze": "head"}, regularise={"stochastic_depth": 0.1})
    message = r"stochastic_depth leaves out residual branches, and this network has none; set it to 0"
    refuse(config, (dataclasses.replace(opened[0], pretrained=vgg), opened[1]), message)


# tasks/methods.py
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"name": "softmaks"}}, r"config\.loss: no loss 'softmaks' \(did you mean 'softmax'\?\); known: "),
        ({"loss": {"class_weighting": "square"}}, r"no class weights 'square'|kind"),
        ({"loss": {"label_smoothing": 1.5}}, r"label_smoothing is 1\.5"),
        ({"lora": {**LORA, "rank": 0}, "groups": {"freeze": "head"}}, r"rank is 0"),
        (
            {"lora": LORA, "groups": {"freeze": "head", "rules": [(".*/lora_c", "up")]}},
            r"lora_c",
        ),
        ({"relative_gradients": {"num_batches": 0}}, r"config\.relative_gradients: num_batches is 0 and count None"),
        ({"relative_gradients": {"num_batches": 1, "count": 0}}, r"num_batches is 1 and count 0, wanted at least 1"),
    ],
)
def test_methods_that_cannot_be_are_refused(root, opened, changes, message):
    refuse(make_config(root, **changes), opened, message)


def test_what_only_a_step_shows_leaves_the_directory_free(root, tmp_path):
    """Features of width 16, and a batch of 24 images: there are as many singular values as the width."""
    bss = {"strength": 1.0, "num_smallest": 17, "stage": "norm"}
    config = make_config(root, penalties={"bss": bss}, finetune={"batch_size": 24})
    with pytest.raises(ValueError, match=r"num_smallest is 17, wanted 1 to 16: features of stage 'norm'"):
        finetune.run(config, tmp_path / "run")
    assert not rundir.has_work(tmp_path / "run")


def test_a_choice_that_a_later_mistake_stops_leaves_the_directory_free(root, tmp_path, monkeypatch):
    """Norms are measured by then; they are kept with the split, or not at all."""
    monkeypatch.setattr(relative, "_measure", lambda *args: NORMS)
    config = make_config(root, relative_gradients={"num_batches": 1}, **CACHED)
    config["prefix"] = {**PREFIX, "dtype": "float64"}
    with pytest.raises(ValueError, match="float64"):
        finetune.run(config, tmp_path / "run")
    assert not rundir.has_work(tmp_path / "run")


def test_kernels_of_the_config_reach_the_steps(root, opened, monkeypatch):
    config = select("finetune", make_config(root, execution={"kernels": {"gelu": "cheap"}}))
    (plan,) = plan_run(config, *opened).plans
    assert plan.forward.kernels == Kernels(gelu="cheap")
    seen = {}
    monkeypatch.setattr(training, "make_eval_step", lambda *_, **settings: seen.update(settings))
    training.evaluation_step(plan)
    assert seen["kernels"] == Kernels(gelu="cheap")
    unknown = make_config(root, execution={"kernels": {"gelu": "fast"}})
    refuse(unknown, opened, "kernels: gelu is 'fast'.*, wanted auto, cheap, plain")


def test_explain_prints_every_phase_and_makes_the_choice_by_gradients(root, capsys, monkeypatch):
    phases = [{"groups": {"freeze": "head"}, "epochs": 1}, {"groups": {"freeze": "head"}}]
    config = make_config(root, phases=phases, relative_gradients={"num_batches": 1, "count": 1})
    # What is measured and what is counted is tested where that is done.
    monkeypatch.setattr(relative, "_measure", lambda *args: NORMS)
    plans = []
    monkeypatch.setattr(explain, "_explain", lambda plan: plans.append(plan) or {"number": float(len(plans))})
    assert explain.run(config) == {"number": 2.0}
    # 32 training images, 8 a step.
    chosen, first, second = re.split(r"phase \d: (?:4|12) steps of 8 images\n", capsys.readouterr().out)
    norms = dict(re.findall(r"^(\w+) +([\d.e-]+)$", chosen, re.MULTILINE))
    assert {stage: float(norm) for stage, norm in norms.items()} == NORMS
    assert plans[0].groups.trained_stages == ("head",)
    assert plans[1].groups.trained_stages == ("block_01", "head")
    assert first != second
    assert all(stage in part for stage in ("block_01", "head") for part in (first, second))


def test_explain_says_whose_statistics_batchnorm_uses(root):
    write_model(root / "resnet", RESNET)
    modes = {}
    for option in (None, "adapt_statistics", "freeze_statistics"):
        config = make_config(
            root, model={"name": f"file:{root / 'resnet'}"}, groups={"freeze": "layer2_00"},
            finetune={} if option is None else {option: True},
        )  # fmt: skip
        inputs = open_inputs(config)
        (plan,) = plan_phases(select("finetune", config), inputs, inputs.source.labels)
        modes[option] = explain.norm_modes(plan)
    assert modes == {
        None: {"stem": "frozen", "layer1_00": "frozen", "layer2_00": "batch", "head": "-"},
        "adapt_statistics": {"stem": "batch", "layer1_00": "batch", "layer2_00": "batch", "head": "-"},
        "freeze_statistics": {"stem": "frozen", "layer1_00": "frozen", "layer2_00": "frozen", "head": "-"},
    }
