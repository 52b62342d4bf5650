"""What 8, 64 and 512 devices say to each other in a training step, and what that leaves of their speed.

    python experiments/scaling/measure.py        # half an hour on two CPU cores; can be killed, and goes on

The step is compiled for that many devices, which are pretended, and its messages are read from the program. Nothing
runs. `efficiency` below turns bytes and messages into seconds by the numbers of an interconnect; change them there.
"""

import csv
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
BATCH_PER_DEVICE = {"vit_l16": 64, "resnet152": 128}
# The last third of the forward pass begins here.
LAST_THIRD = {"vit_l16": "block_16", "resnet152": "layer3_20"}
CASES = [
    (net, trained, devices, fsdp)
    for net in BATCH_PER_DEVICE
    for trained, devices, fsdp in (
        ("all", 8, 1), ("all", 64, 1), ("all", 512, 1), ("all", 64, 8), ("last third", 64, 1), ("head", 64, 1),
    )
]  # fmt: skip

# bfloat16 peak of an H100 SXM (NVIDIA's data sheet), and the share of it that a step alone was measured at or near.
PEAK_FLOPS = 989e12
SHARE_OF_PEAK = {"vit_l16": 0.35, "resnet152": 0.16}
# Bytes a second that a device can send within a node of eight, by NVLink 4; and that a node can send. A ring through
# all devices enters and leaves each node once, or as often as it has adapters, each with its part of the bytes.
NODE_SIZE, NVLINK = 8, 450e9
BETWEEN_NODES = {"8 x 400 Gbit/s": 8 * 50e9, "1 x 100 Gbit/s": 12.5e9}
# Of a message however short: assumed, in seconds, by the number of devices.
LATENCY_S = {8: 20e-6, 64: 40e-6, 512: 60e-6}
COLUMNS = ("net", "trained", "devices", "fsdp", "trained_mb", "all_reduces", "all_reduce_mb", "all_gathers",
           "all_gather_mb", "permuted_mb", "sent_mb", "step_tflops")  # fmt: skip


def measure(net_name: str, trained: str, devices: int, fsdp: int) -> dict[str, str | float]:
    """Compile one case, in a process that has been given the devices."""
    import jax

    from tljax.devices import make_mesh
    from tljax.finetune.collectives import collectives
    from tljax.finetune.costs import lower_step, lower_step_on, step_batch
    from tljax.finetune.forward import Forward
    from tljax.finetune.groups import make_groups
    from tljax.finetune.mix import Mix
    from tljax.finetune.optimizer import make_optimizer
    from tljax.finetune.step import train_body
    from tljax.models import Net, architecture
    from tljax.preprocess import Preprocess

    net = Net(dataclasses.replace(architecture(net_name), num_classes=1000))
    freeze = {"all": 0, "last third": LAST_THIRD[net_name], "head": "head"}[trained]
    groups = make_groups(net.shapes, net.stages, freeze=freeze)
    forward = Forward(net=net, training=groups.trained_stages, compute_dtype="bfloat16")
    body = functools.partial(
        train_body, forward=forward, preprocess=Preprocess(size=224), mix=Mix(mixup_alpha=0.8),
        tx=make_optimizer(groups, lambda step: 1e-4, name="adamw", weight_decay=0.05, clip_norm=1.0),
    )  # fmt: skip
    own = BATCH_PER_DEVICE[net_name]
    batch = step_batch(forward, own * devices, (224, 224, 3))
    mesh = make_mesh(jax.devices(), fsdp=fsdp)
    program = lower_step_on(mesh, body, net.shapes, groups, net.stat_shapes, batch).compile().as_text()
    alone, _ = lower_step(body, net.shapes, groups, net.stat_shapes, step_batch(forward, own, (224, 224, 3)))
    messages = collectives(program, devices)
    counts, sizes = Counter(message.kind for message in messages), Counter()
    for message in messages:
        sizes[message.kind] += message.num_bytes
    trained_bytes = sum(4 * math.prod(leaf.shape) for leaf in groups.split(net.shapes)[0].values())
    return {
        "net": net_name, "trained": trained, "devices": devices, "fsdp": fsdp,
        "trained_mb": round(trained_bytes / 1e6, 2),
        "all_reduces": counts["all-reduce"] + counts["reduce-scatter"],
        "all_reduce_mb": round((sizes["all-reduce"] + sizes["reduce-scatter"]) / 1e6, 2),
        "all_gathers": counts["all-gather"], "all_gather_mb": round(sizes["all-gather"] / 1e6, 2),
        "permuted_mb": round(sizes["collective-permute"] / 1e6, 2),
        "sent_mb": round(sum(message.sent_bytes for message in messages) / 1e6, 2),
        "step_tflops": round(alone.cost_analysis()["flops"] / 1e12, 3),
    }  # fmt: skip


def efficiency(row: dict[str, str], between_nodes: float) -> tuple[float, float]:
    """Return the share of the time that a step computes: with no message hidden, and with all that can be.

    What is reduced at the end of the backward pass may hide behind it, two thirds of the computing; messages in the
    middle of it, those of BatchNorm, cannot, as what follows waits for them.
    """
    devices = int(row["devices"])
    compute_s = float(row["step_tflops"]) * 1e12 / (PEAK_FLOPS * SHARE_OF_PEAK[row["net"]])
    bytes_per_s = NVLINK if devices <= NODE_SIZE else min(NVLINK, between_nodes)
    transfer_s = float(row["sent_mb"]) * 1e6 / bytes_per_s
    waiting_s = (int(row["all_reduces"]) + int(row["all_gathers"])) * LATENCY_S[devices]
    exposed_s = max(0.0, transfer_s - compute_s * 2 / 3)
    return compute_s / (compute_s + transfer_s + waiting_s), compute_s / (compute_s + exposed_s + waiting_s)


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as Markdown, with what they imply."""
    names = [f"{name}: {kind}" for name in BETWEEN_NODES for kind in ("nothing hidden", "hidden")]
    lines = ["| " + " | ".join((*COLUMNS, *names)) + " |", "|---" * (len(COLUMNS) + len(names)) + "|"]
    for row in rows:
        shares = [f"{share:.3f}" for speed in BETWEEN_NODES.values() for share in efficiency(row, speed)]
        lines.append("| " + " | ".join((*(str(row[column]) for column in COLUMNS), *shares)) + " |")
    return "\n".join(lines)


def known() -> list[dict[str, str]]:
    """Return the rows of earlier runs."""
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure what is missing, and print the table."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
        return
    for case in CASES:
        if any([row["net"], row["trained"], int(row["devices"]), int(row["fsdp"])] == list(case) for row in known()):
            continue
        flags = f"--xla_force_host_platform_device_count={case[2]} --xla_backend_optimization_level=0"
        found = subprocess.run(
            [sys.executable, __file__, json.dumps(case)], env={**os.environ, "XLA_FLAGS": flags}, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        is_new = not RESULTS.exists()
        with open(RESULTS, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(json.loads(found.stdout.splitlines()[-1]))
        print(known()[-1], flush=True)
    print(table(known()))


if __name__ == "__main__":
    main()
