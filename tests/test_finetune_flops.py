"""A frozen prefix costs no backward pass, by XLA's own count of the compiled step."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tljax.finetune.costs import count_flops, forward_flops, lower, lower_step, stage_flops, step_batch
from tljax.finetune.forward import Forward
from tljax.finetune.groups import make_groups
from tljax.finetune.mix import Mix
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.step import train_body
from tljax.models import Net, architecture, kernels
from tljax.preprocess import Preprocess

PREPROCESS = Preprocess(size=224)
SHAPE = (224, 224, 3)


@functools.cache
def net_of(name):
    return Net(dataclasses.replace(architecture(name), num_classes=10))


@functools.cache
def forward_of(name, size):
    return forward_flops(Forward(net=net_of(name), training=()), size, SHAPE)


def step_over_forward(name, freeze, size):
    """With clipping, the norm logged, an average of the params and mixed images."""
    net = net_of(name)
    groups = make_groups(net.shapes, net.stages, freeze=freeze)
    forward = Forward(net=net, training=groups.trained_stages)
    body = functools.partial(
        train_body,
        forward=forward,
        tx=make_optimizer(groups, lambda step: 1e-4, name="adamw", weight_decay=0.05, clip_norm=1.0),
        preprocess=PREPROCESS,
        mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0),
        average_decay=0.999,
    )
    lowered, _ = lower_step(body, net.shapes, groups, net.stat_shapes, step_batch(forward, size, SHAPE))
    return count_flops(lowered) / forward_of(name, size)


@pytest.mark.parametrize(
    ("freeze", "share"),
    [
        ("block_10", 1.32),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("block_06", 1.97), ("head", 1.00), (0, 2.98))),
    ],
)
def test_flops_of_a_step_of_a_vit(freeze, share):
    # 3 %: what the optimizer adds, and how XLA fuses and recomputes, differ from version to version.
    assert step_over_forward("vit_s16", freeze, 8) == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize(("name", "freeze"), [("resnet50", "layer4_01"), ("vgg16", "block5_conv1")])
def test_flops_of_a_step_of_a_convolutional_net(name, freeze):
    """(3 - 2p) F, where the prefix holds the share p; experiments/freezing_flops has more depths."""
    net = net_of(name)
    by_stage = stage_flops(net, 4, SHAPE)
    share = sum(by_stage[stage] for stage in net.stages[: net.depth(freeze)]) / sum(by_stage.values())
    assert step_over_forward(name, freeze, 4) == pytest.approx(3 - 2 * share, rel=0.03)


def test_flops_are_counted_for_cpus_wherever_a_run_runs(monkeypatch):
    """XLA counts none before it compiles for GPUs, and none of what it gives to cuDNN."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert kernels.platform() == "tpu"
    ways, platforms = [], []

    def run(x):
        ways.append(kernels.gelu_way(kernels.Kernels()))
        platforms.append(kernels.platform())
        return x @ x

    x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    assert count_flops(lower(run, x)) == 2 * 16**3
    assert (ways, platforms) == (["plain"], ["cpu"])

    def no_cpu(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    with pytest.raises(ValueError, match="FLOPs are counted of a program for CPUs, .* set JAX_PLATFORMS=.*,cpu"):
        lower(run, x)


def test_nothing_is_counted_elsewhere():
    modules = {path.name: path.read_text() for path in Path("tljax").rglob("*.py")}
    counting = {name for name, text in modules.items() if ".cost_analysis()" in text}
    assert counting == {"bench_train.py", "caching.py", "costs.py", "explain.py", "sizes.py", "study_costs.py"}
    # What they count was lowered by `lower`, by `lower_step`, which calls it, or in `on_cpu`.
    for name in counting:
        assert ("with on_cpu():" in modules[name]) == ("jax.jit(" in modules[name]), name
