"""What each method of fine-tuning costs, by XLA's count of the compiled step; fills the table of docs/methods.md.

    python experiments/method_costs/measure.py        # some ten minutes on two CPU cores; nothing is computed

Rows that results.csv has for the same config line and version of jax are kept: delete it to count again. The net is a
DINOv2 ViT-S/14 at 224 px with 2 classes, of zeros, as only shapes matter, and the batch is of 8 images.
"""

import csv
import dataclasses
import io
import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from methods import BASE, METHODS, Method, change

from tljax import rundir
from tljax.data.folder import ImageFolder
from tljax.finetune.costs import forward_flops, lower_step, step_batch
from tljax.finetune.forward import Forward
from tljax.models import Net, architecture
from tljax.preprocess import Preprocess
from tljax.tasks.inputs import Inputs
from tljax.tasks.plan import Plan, plan_phases
from tljax.tasks.recipe import phase_configs
from tljax.tasks.training import step_body
from tljax.weights import Pretrained
from tljax.weights.strict import LoadReport

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS, PAGE = HERE / "results.csv", ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- costs: made by `python experiments/method_costs/measure.py` -->", "<!-- end of costs -->"
BATCH_SIZE, NUM_CLASSES, SIZE = 8, 2, 224
NUM_IMAGES = 320
COLUMNS = ("method", "phase", "config", "trained_params", "step_gflops", "step_over_forward", "state_mib",
           "temporary_mib", "jax")  # fmt: skip
HEADER = ("method", "config", "trained params", "step / forward", "state MiB", "temporary MiB", "what it does", "paper")

Row = dict[str, str]


def config_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of configs/images.py with the base of all methods and further changes."""
    config = runpy.run_path(str(ROOT / "configs" / "images.py"))["get_config"]()
    change(config, BASE)
    change(config, changes)
    return config.to_dict()


def zero_inputs(image_size: int) -> Inputs:
    """Return images that nobody reads, and the net with params of zeros."""
    net = Net(dataclasses.replace(architecture("dinov2_vits14"), num_classes=NUM_CLASSES, image_size=image_size))
    pretrained = Pretrained(
        name="dinov2_vits14",
        description="zeros",
        licence="none",
        net=net,
        params={path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in net.shapes.items()},
        stats={},
        preprocess=Preprocess(size=image_size),
        report=LoadReport(used={}, ignored=(), fresh=tuple(net.shapes)),
        layout="hf-dinov2",
    )
    # As unequal as classes are where class weights are wanted.
    labels = (np.arange(NUM_IMAGES) % 4 == 0).astype(np.int32)
    files = tuple(f"{index}.png" for index in range(NUM_IMAGES))
    source = ImageFolder(root=Path(), name="zeros", files=files, class_names=("many", "few"), labels=labels)
    return Inputs(source=source, pretrained=pretrained)


def plan_each(config: Mapping[str, Any]) -> list[Plan]:
    """Return the plan of each phase, with the net at the image size of the phase."""
    plans = []
    for phase in phase_configs(config):
        inputs = zero_inputs(phase["model"]["image_size"])
        alone = {name: section for name, section in phase.items() if name != "phases"}
        plans += plan_phases(alone, inputs, inputs.source.labels)
    return plans


def count_params(plan: Plan) -> int:
    """Return the number of trained params."""
    trained, _ = plan.groups.split(plan.initial)
    return sum(value.size for value in trained.values())


def measure(plan: Plan, forward: float) -> dict[str, str]:
    """Return the columns of a phase that are counted.

    Args:
        plan: of the phase.
        forward: FLOPs of a batch's forward pass.
    """
    compiled, state = compile_step(plan)
    # XLA counts the body of a loop once, and parts are a loop. What they compute is what the whole batch computes.
    whole = dataclasses.replace(plan, objective={**plan.objective, "num_parts": 1})
    step = (compiled if plan.recipe.num_parts == 1 else compile_step(whole)[0]).cost_analysis()["flops"]
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {
        "trained_params": str(count_params(plan)),
        "step_gflops": f"{step / BATCH_SIZE / 1e9:.3f}",
        "step_over_forward": f"{step / forward:.3f}",
        "state_mib": f"{num_bytes / 2**20:.2f}",
        "temporary_mib": f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.1f}",
        "jax": jax.__version__,
    }


def compile_step(plan: Plan) -> tuple[Any, Any]:
    """Return the compiled step of a phase, and the shapes of its train state."""
    pretrained = plan.inputs.pretrained
    batch = step_batch(plan.forward, BATCH_SIZE, pretrained.preprocess.shape)
    lowered, state = lower_step(step_body(plan), plan.initial, plan.groups, pretrained.stats, batch)
    return lowered.compile(), state


def config_text(method: Method) -> str:
    """Return the config lines of a method on one line."""
    return "; ".join(method.lines)


def rows_of(method: Method, known: list[Row], forward: float) -> list[Row]:
    """Return the rows of a method, measured where they are not known."""
    config = config_text(method)
    found = [row for row in known if (row["config"], row["jax"]) == (config, jax.__version__)]
    if found:
        return [{**row, "method": method.name} for row in found]
    changed = config_of(method.changes)
    changed["finetune"]["batch_size"] = BATCH_SIZE
    plans = plan_each(changed)
    phases = [""] if len(plans) == 1 else [str(index) for index in range(1, len(plans) + 1)]
    named = [{"method": method.name, "phase": phase, "config": config} for phase in phases]
    return [{**name, **measure(plan, forward)} for name, plan in zip(named, plans, strict=True)]


def table(rows: list[Row]) -> str:
    """Return the Markdown table of the page."""
    methods = {method.name: method for method in METHODS}
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for row in rows:
        method, is_first = methods[row["method"]], row["phase"] in ("", "1")
        name = row["method"] + (f", phase {row['phase']}" if row["phase"] else "")
        written = "<br>".join(f"`{line}`" for line in method.lines) if is_first else ""
        numbers = (
            f"{int(row['trained_params']):,}", f"{float(row['step_over_forward']):.2f}",
            f"{float(row['state_mib']):.1f}", f"{float(row['temporary_mib']):.0f}",
        )  # fmt: skip
        said = (method.text, ", ".join(method.papers)) if is_first else ("", "")
        lines.append("| " + " | ".join((name, written, *numbers, *said)) + " |")
    return "\n".join(lines)


def read_rows() -> list[Row]:
    """Return the rows of results.csv."""
    with open(RESULTS, newline="") as file:
        return list(csv.DictReader(file))


def save(rows: list[Row]) -> None:
    """Write results.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    rundir.write_bytes(RESULTS, text.getvalue().encode())


def main() -> None:
    """Measure what is not known yet, and put the table into the page."""
    jax.config.update("jax_platforms", "cpu")
    # The other scheduler of XLA's CPU compiler spends memory to run operations side by side, as no accelerator does.
    os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    net = zero_inputs(SIZE).pretrained.net
    forward = forward_flops(Forward(net=net, training=()), BATCH_SIZE, (SIZE, SIZE, 3))
    wanted = {config_text(method) for method in METHODS}
    known = [row for row in read_rows() if row["config"] in wanted] if RESULTS.exists() else []
    rows: list[Row] = []
    for method in METHODS:
        rows += rows_of(method, known, forward)
        print(rows[-1], flush=True)
        # Those of methods that are still to come must outlive a stop.
        done = {row["config"] for row in rows}
        save([*rows, *(row for row in known if row["config"] not in done)])
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")
    print(f"forward {forward / BATCH_SIZE / 1e9:.3f} GFLOPs; jax {jax.__version__}, {jax.default_backend()}")


if __name__ == "__main__":
    main()
