"""`tljax bench train`: how many images a second the training step takes in, for what is trained and how."""

import csv
import dataclasses
import functools
import io
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax import rundir
from tljax.devices import make_mesh, place, put_batch, shapes_on
from tljax.finetune.costs import lower, step_batch
from tljax.finetune.devices import make_train_step
from tljax.finetune.forward import Forward
from tljax.finetune.groups import Groups, make_groups
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.state import Fixed, TrainState, init_state
from tljax.finetune.step import train_body
from tljax.models.kernels import PLAIN_FORMULAS, platform
from tljax.paths import stage_of
from tljax.preprocess import Preprocess
from tljax.tasks.ahead import compile_step
from tljax.tasks.bench_jobs import CACHED, KERNELS, NUM_CLASSES, Job, Settings
from tljax.tasks.peak import Peak, peak_of

WARM_UP_STEPS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A compiled step and its arrays.

    Args:
        run: number of steps -> seconds that they take; the arrays live as long as this function.
        gflops: of a step and image, counted by XLA in the plain form of the same step.
        memory_bytes: that the compiled program needs on one device.
        lower_s: of tracing and lowering.
        compile_s: of compiling.
    """

    run: Callable[[int], float]
    gflops: float
    memory_bytes: int
    lower_s: float
    compile_s: float


def prepare(job: Job) -> Prepared:
    """Compile the training step of a row, and put random params and images on the devices."""
    net, mesh = job.net, make_mesh(jax.devices())
    first = job.freeze(net)
    groups = make_groups(net.shapes, net.stages, freeze=first)
    tx = make_optimizer(groups, lambda _: 1e-4, name="adamw", weight_decay=0.05, clip_norm=None)
    preprocess = Preprocess(size=job.image_size)
    forward = Forward(
        net=net, training=groups.trained_stages, start=first if job.row == CACHED else 0,
        compute_dtype=None if job.dtype == "float32" else job.dtype, kernels=KERNELS[job.kernels],
    )  # fmt: skip
    batch = step_batch(forward, job.batch_size, preprocess.shape)
    if "activation" in batch:
        batch["activation"] = jax.ShapeDtypeStruct(batch["activation"].shape, job.dtype)
    state, fixed = _draw_state(forward, groups, tx)

    body = functools.partial(train_body, tx=tx, preprocess=preprocess)
    step = make_train_step(functools.partial(body, forward=forward), mesh)
    compiled = compile_step(step, (shapes_on(state, mesh), shapes_on(fixed, mesh), batch))
    plain = dataclasses.replace(forward, kernels=PLAIN_FORMULAS)
    counted = lower(functools.partial(body, forward=plain), *jax.eval_shape(lambda *trees: trees, state, fixed, batch))
    return Prepared(
        run=_runner(compiled.step, place(state, mesh), place(fixed, mesh), put_batch(_draw_batch(batch), mesh)),
        gflops=counted.cost_analysis()["flops"] / job.batch_size / 1e9,
        memory_bytes=_program_bytes(compiled.step),
        lower_s=compiled.lower_s,
        compile_s=compiled.compile_s,
    )


def _draw_state(forward: Forward, groups: Groups, tx: Any) -> tuple[TrainState, Fixed]:
    net = forward.net
    params, stats = net.init(jax.random.key(0))
    trained, frozen = groups.split(params)
    running = {path: value for path, value in frozen.items() if net.depth(stage_of(path)) >= net.depth(forward.start)}
    return init_state(trained, stats, tx), Fixed(params=running)


def _draw_batch(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    high = {"image": 256, "label": NUM_CLASSES}
    return {
        name: rng.integers(0, high[name], leaf.shape).astype(leaf.dtype)
        if name in high
        else rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        for name, leaf in shapes.items()
    }


def _runner(step: Callable[..., Any], state: Any, fixed: Any, batch: Any) -> Callable[[int], float]:
    def run(num_steps: int) -> float:
        nonlocal state
        began, metrics = time.perf_counter(), None
        for _ in range(num_steps):
            state, metrics = step(state, fixed, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - began

    return run


def _program_bytes(compiled: Any) -> int:
    """Return what a compiled program needs on a device: arguments, results that take no argument's place, the rest."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


def measure(job: Job, peak: Peak, *, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Return a row of the table: what was measured, and how fast it was."""
    before = _peak_bytes()
    prepared = prepare(job)
    prepared.run(WARM_UP_STEPS)
    seconds = [prepared.run(num_steps) / num_steps for _ in range(num_rounds)]
    after = _peak_bytes()
    # The device remembers the highest of all rows so far.
    is_highest = after is not None and after > (before or 0)
    best = job.batch_size / min(seconds)
    return {
        **dataclasses.asdict(job),
        "images_per_s": best,
        "images_per_s_median": job.batch_size / statistics.median(seconds),
        "gflops_per_image": prepared.gflops,
        "tflops_per_s": best * prepared.gflops / 1e3,
        "share_of_peak": best * prepared.gflops * 1e9 / (peak.flops_per_s * num_independent()),
        "peak_tflops_per_s": peak.flops_per_s * num_independent() / 1e12,
        "peak_source": peak.source,
        "memory_gb": (after if is_highest and after is not None else prepared.memory_bytes) / 1e9,
        "memory_source": "device" if is_highest else "program",
        "lower_s": prepared.lower_s,
        "compile_s": prepared.compile_s,
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
    }


def num_independent() -> int:
    """Return the number of devices that do not share their arithmetic; those of a CPU do."""
    return 1 if platform() == "cpu" else jax.device_count()


def _peak_bytes() -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats["peak_bytes_in_use"]


def bench_train(settings: Settings) -> list[dict[str, Any]]:
    """Measure all rows, and log each."""
    peak = peak_of(jax.devices()[0], settings.dtype)
    rows = []
    for job in settings.jobs():
        row = measure(job, peak, num_steps=settings.num_steps, num_rounds=settings.num_rounds)
        log.info("%s %s %s: %.1f images/s", job.model, job.row, job.kernels, row["images_per_s"])
        rows.append(row)
    return rows


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for people, and what its numbers are."""
    header = ("model", "trained", "kernels", "images/s", "median", "TFLOP/s", "of peak", "GB", "compile s")
    cells = [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in pairs).rstrip()
        for line in (header, *cells)
        for pairs in [list(enumerate(zip(line, widths, strict=True)))]
    ]
    first = rows[0]
    lines.append(
        f"{first['num_devices']} x {first['device']}, batches of {first['batch_size']} at {first['image_size']} px, "
        f"{first['dtype']}, jax {first['jax']}; peak {first['peak_tflops_per_s']:.4g} TFLOP/s ({first['peak_source']})"
    )
    if any(row["memory_source"] == "program" for row in rows):
        lines.append("* by the compiler's count; others by the device's, which remembers its highest alone")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "*" if row["memory_source"] == "program" else ""
    return (
        row["model"],
        row["row"],
        row["kernels"],
        f"{row['images_per_s']:,.1f}",
        f"{row['images_per_s_median']:,.1f}",
        f"{row['tflops_per_s']:.3g}",
        f"{row['share_of_peak']:.1%}",
        f"{row['memory_gb']:.2f}{mark}",
        f"{row['lower_s'] + row['compile_s']:.1f}",
    )


def check_target(path: str | os.PathLike) -> None:
    """Refuse a file that is neither CSV nor JSON, by its name, before anything is measured."""
    kind = Path(path).suffix
    if kind not in (".csv", ".json"):
        raise ValueError(f"--to={path} ends in {kind!r}, wanted .csv or .json")


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write the rows as CSV or JSON, as the name of the file says."""
    check_target(path)
    buffer = io.StringIO()
    if Path(path).suffix == ".json":
        json.dump(list(rows), buffer, indent=1)
        buffer.write("\n")
    else:
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    rundir.write_bytes(path, buffer.getvalue().encode())
