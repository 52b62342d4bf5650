"""Frozen means frozen, on bits: every way to choose what trains, on nets with and without running statistics."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.finetuning import ONE, assert_same_bits, make_batch, make_job
from tljax.finetune.devices import make_train_step
from tljax.finetune.lora import init_lora
from tljax.finetune.mix import Mix
from tljax.finetune.penalties import make_penalties
from tljax.models import Net, ResNetConfig, VggConfig, VitConfig
from tljax.models.noise import Regularise
from tljax.paths import stage_of

NETS = {
    "resnet": Net(ResNetConfig(depths=(1, 1), widths=(8, 16), stem_width=8, is_bottleneck=False, num_classes=2)),
    "vgg_bn": Net(
        VggConfig(convolutions=(1, 2), widths=(4, 8), use_norm=True, hidden_width=0, num_classes=2, pool_grid=1)
    ),
    "vit": Net(VitConfig(depth=2, width=16, num_heads=2, patch_size=8, image_size=16, num_classes=2)),
}
# Of each net: the stage in the middle, and a kernel in it.
MIDDLE = {
    "resnet": ("layer1_00", "layer1_00/conv2/kernel"),
    "vgg_bn": ("block2_conv1", "block2_conv1/conv/kernel"),
    "vit": ("block_00", "block_00/mlp/fc1/kernel"),
}
METHODS = {
    "head": lambda stage, kernel: {"freeze": "head"},
    "late stages": lambda stage, kernel: {"freeze": stage},
    "one stage and the head": lambda stage, kernel: {"stages_trained": [stage, "head"]},
    "one stage without the head": lambda stage, kernel: {"stages_trained": [stage]},
    "biases": lambda stage, kernel: {"freeze": 0, "only": "bias"},
    "norms": lambda stage, kernel: {"freeze": 0, "only": "norm"},
    "a rule": lambda stage, kernel: {"freeze": "head", "rules": [(kernel, "body")]},
    "a delta": lambda stage, kernel: {"freeze": "head", "rules": [(".*/lora_[ab]", "body")]},
}
# Every method and every net; the other pairs are slow, as each compiles a step.
FAST = {
    ("resnet", "late stages"), ("resnet", "norms"), ("vgg_bn", "head"), ("vgg_bn", "one stage without the head"),
    ("vgg_bn", "a rule"), ("vit", "late stages"), ("vit", "one stage and the head"), ("vit", "biases"),
    ("vit", "a delta"),
}  # fmt: skip
PAIRS = [
    pytest.param(name, method, marks=[] if (name, method) in FAST else pytest.mark.slow)
    for name in NETS
    for method in METHODS
]


def job_of(name, method):
    net, (stage, kernel) = NETS[name], MIDDLE[name]
    # Every branch may be left out, where there are branches.
    noise = Regularise(dropout=0.2, stochastic_depth=0.2 if net.architecture.branch_stages else 0.0)
    forward: dict[str, Any] = {"regularise": noise}
    deltas = None
    if method == "a delta":
        deltas = init_lora(net.shapes, jax.random.key(0), rules=[kernel], rank=2)
        forward["lora_scaling"] = 4.0
    penalties = make_penalties(net.stages, {"l2_sp": {"strength": 0.1, "head_strength": 0.1}})
    return make_job(
        net, 16, **METHODS[method](stage, kernel), deltas=deltas, forward=forward, penalties=penalties,
        average_decay=0.9, mix=Mix(mixup_alpha=0.4, cutmix_alpha=0.4), seed=1,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_frozen_params_and_statistics_keep_every_bit(name, method):
    """With weight decay, clipping, an average, penalties, mixing and dropout on."""
    job = job_of(name, method)
    before = {**job.params, **job.stats}
    state, fixed = job.place(ONE)
    step = make_train_step(job.body, ONE)
    for index in range(2):
        state, _ = step(state, fixed, make_batch(index, 16))
    frozen = {path: value for path, value in job.params.items() if not job.groups.is_trained(path)}
    assert frozen
    assert_same_bits(fixed.params, frozen)
    for path, value in state.trained.items():
        assert not np.array_equal(value, before[path]), path
    moved = {path for path, value in state.stats.items() if not np.array_equal(value, before[path])}
    wanted = {path for path in job.stats if stage_of(path) in job.groups.trained_stages}
    assert moved == wanted
    assert set(state.average) == {*state.trained, *wanted}
    # No memory is spent on what is frozen.
    moments = {path: jax.tree.leaves(own) for path, own in state.opt_state.params.items()}
    assert set(moments) == set(state.trained)


# In a process of its own, whose hash seed the other one has not.
PROGRAM = """
import hashlib
import jax
from tests.test_finetune_frozen import job_of
from tests.finetuning import ONE, make_batch
from tljax.finetune.devices import make_train_step

for method in ("a delta", "late stages"):
    job = job_of("vit", method)
    text = make_train_step(job.body, ONE).lower(*job.place(ONE), make_batch(0, 16)).as_text()
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_every_process_compiles_the_same_step():
    """Or a run that goes on in another process would add up in another order, to other bits."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in (1, 2)
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert len(set(first.split())) == 2
