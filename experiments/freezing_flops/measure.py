"""What freezing saves: FLOPs of the compiled training step by freeze depth, against theory.

    python experiments/freezing_flops/measure.py        # a few minutes on two CPU cores; nothing is computed

A step whose frozen prefix holds the share p of the forward pass F costs (3 - 2p) F: forward everywhere, and twice that
backward behind the prefix, once for the params and once for what goes to the layer before. The first trained stage has
nobody to pass a gradient to, which saves the share g of F: (3 - 2p - g) F. Clipping, the logged norm, the average of
the params and mixing of images are on.
"""

import csv
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from tljax.finetune.costs import count_flops, forward_flops, lower_step, stage_flops, stage_inputs, step_batch
from tljax.finetune.forward import Forward
from tljax.finetune.groups import make_groups
from tljax.finetune.mix import Mix
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.step import train_body
from tljax.models import Net, architecture
from tljax.paths import stage_of
from tljax.preprocess import Preprocess

HERE = Path(__file__).parent
BATCH_SIZE = 8
DEPTHS = {
    "resnet50": ("stem", "layer3_00", "layer4_00", "layer4_01", "head"),
    "vgg16": ("block1_conv1", "block4_conv1", "fc1", "head"),
    "vit_s16": ("embed", "block_06", "block_10", "head"),
}
COLUMNS = ("net", "train_from", "share_frozen", "forward_gflops", "step_gflops", "step_over_forward", "theory", "off",
           "theory_with_g", "off_with_g")  # fmt: skip


def unneeded_flops(net: Net, stage: str, shape: tuple[int, ...]) -> float:
    """Return the FLOPs of the gradient of a stage's input."""
    x = stage_inputs(net, BATCH_SIZE, shape)[stage]
    params = {path: leaf for path, leaf in net.shapes.items() if stage_of(path) == stage}

    def total(params: dict[str, jax.Array], x: jax.Array, stats: dict[str, jax.Array]) -> jax.Array:
        y, _ = net.apply(params, stats, x, start=stage, stop=net.depth(stage) + 1, train_from=stage)
        return jnp.sum(jnp.square(y))

    both, one = (
        count_flops(jax.jit(jax.grad(total, argnums)).lower(params, x, net.stat_shapes)) for argnums in ((0, 1), 0)
    )
    return both - one


def measure(name: str) -> list[dict[str, str | float]]:
    """Return a row for each depth of one net."""
    net = Net(dataclasses.replace(architecture(name), num_classes=10))
    preprocess, shape = Preprocess(size=224), (224, 224, 3)
    forward = forward_flops(Forward(net=net, training=()), BATCH_SIZE, shape)
    by_stage = stage_flops(net, BATCH_SIZE, shape)
    rows = []
    for freeze in DEPTHS[name]:
        groups = make_groups(net.shapes, net.stages, freeze=freeze)
        settings = Forward(net=net, training=groups.trained_stages)
        body = functools.partial(
            train_body,
            forward=settings,
            tx=make_optimizer(groups, lambda step: 1e-4, name="adamw", weight_decay=0.05, clip_norm=1.0),
            preprocess=preprocess,
            mix=Mix(mixup_alpha=0.8, cutmix_alpha=1.0),
            average_decay=0.999,
        )
        lowered, _ = lower_step(body, net.shapes, groups, net.stat_shapes, step_batch(settings, BATCH_SIZE, shape))
        step = count_flops(lowered)
        prefix = net.stages[: net.depth(freeze)]
        share = sum(by_stage[stage] for stage in prefix) / sum(by_stage.values())
        theory = 3 - 2 * share
        exact = theory - unneeded_flops(net, freeze, shape) / forward
        rows.append(
            {
                "net": name,
                "train_from": freeze,
                "share_frozen": round(share, 4),
                "forward_gflops": round(forward / BATCH_SIZE / 1e9, 2),
                "step_gflops": round(step / BATCH_SIZE / 1e9, 2),
                "step_over_forward": round(step / forward, 3),
                "theory": round(theory, 3),
                "off": round(step / forward / theory - 1, 4),
                "theory_with_g": round(exact, 3),
                "off_with_g": round(step / forward / exact - 1, 4),
            }
        )
    return rows


def main() -> None:
    """Print the table, and write it beside this file."""
    rows = [row for name in DEPTHS for row in measure(name)]
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    print(f"jax {jax.__version__}, {jax.default_backend()}, batch {BATCH_SIZE} at 224 px")


if __name__ == "__main__":
    main()
