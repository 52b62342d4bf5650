"""What is left of a study may cost: by its finished runs, or by XLA's count of FLOPs where there are none."""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import plain
from tljax.ablation.runs import Run
from tljax.features.store import META
from tljax.finetune.costs import lower, shapes_of
from tljax.models.kernels import PLAIN_FORMULAS
from tljax.tasks import finetune
from tljax.tasks.caching import prefix_bytes, settle_caches, step_flops
from tljax.tasks.feed import locate_prefix
from tljax.tasks.inputs import Inputs, make_split, open_inputs
from tljax.tasks.launching import find_results
from tljax.tasks.plan import Plan, plan_phases
from tljax.tasks.sections import call
from tljax.tasks.speeds import free_bytes, measure_speeds
from tljax.tasks.studies import StudyRuns

# What changes no shape and no number of steps.
_FREE_SECTIONS = ("seed", "schedule", "loss", "evaluate", "execution")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one run computes and stores.

    Args:
        flops: of training, validation and test, from where its steps begin.
        stores: {folder of a stored prefix: (FLOPs to compute it, bytes)}; one that is there costs nothing.
        state_bytes: of a checkpoint.
    """

    flops: float
    stores: Mapping[Path, tuple[float, int]]
    state_bytes: int


def describe_costs(planned: StudyRuns) -> list[str]:
    """Say what the runs that are left may cost, and by what that is estimated."""
    found = {name: find_results(run) for name, run in planned.runs.items()}
    left = [planned.runs[name] for name, results in found.items() if results is None]
    finished = [(planned.runs[name], results) for name, results in found.items() if results is not None]
    if not left:
        return ["cost     nothing is left to run"]
    lines = []
    if planned.study.task == finetune.NAME:
        lines += _by_flops(left, is_timed=not finished)
    elif not finished:
        lines.append(f"cost     unknown: FLOPs are counted of {finetune.NAME} alone, and no run is finished")
    if finished:
        seconds = sum(_nearest_seconds(run, finished) for run in left)
        size = statistics.fmean(_folder_bytes(Path(run.workdir)) for run, _ in finished)
        lines.append(
            f"seconds  {seconds:.3g} for {len(left)} runs one after the other, by the seconds of the nearest of "
            f"{len(finished)} finished runs"
        )
        lines.append(f"disk     {len(left) * size / 1e9:.3g} GB for run directories like the finished ones")
    free = free_bytes(left[0].workdir)
    return [*lines, f"free     {free / 1e9:.3g} GB on the disk of the runs"]


def _by_flops(left: Sequence[Run], *, is_timed: bool) -> list[str]:
    counted = count_runs(left)
    stores = {folder: cost for one in counted for folder, cost in one.stores.items()}
    flops = sum(one.flops for one in counted) + sum(cost for cost, _ in stores.values())
    store_bytes = sum(size for _, size in stores.values())
    lines = [
        f"cost     {flops / 1e12:.3g} TFLOPs by XLA's count, for {len(stores)} stored prefixes of "
        f"{store_bytes / 1e9:.3g} GB that are not there yet among it"
    ]
    if is_timed:
        speed = measure_speeds(left[0].config["cache_dir"]).flops_per_s
        # The last and the best checkpoint, one being written, and the params without the optimizer's state.
        size = sum(3.5 * one.state_bytes for one in counted)
        lines.append(
            f"seconds  {flops / speed:.3g} for {len(left)} runs one after the other, if they computed as fast as this "
            f"CPU multiplies matrices ({speed / 1e9:.3g} GFLOP/s): a lower bound, without reading, compiling, saving"
        )
        lines.append(f"disk     {size / 1e9:.3g} GB for run directories, by the size of their checkpoints")
    return lines


def count_runs(runs: Sequence[Run]) -> list[Counted]:
    """Count what each fine-tuning run computes; those that differ in rates, losses or seeds alone are counted once."""
    known: dict[str, Counted] = {}
    opened: dict[str, Inputs] = {}
    counted = []
    for run in runs:
        config = plain.as_read(run.config)
        shared = {name: section for name, section in config.items() if name not in _FREE_SECTIONS}
        key = plain.fingerprint(shared)
        if key not in known:
            source = plain.fingerprint([config["data"], config["model"]])
            if source not in opened:
                opened[source] = open_inputs(run.config)
            known[key] = _count(run.config, opened[source])
        counted.append(known[key])
    return counted


def _count(config: Mapping[str, Any], inputs: Inputs) -> Counted:
    split = call("split", config, make_split, inputs.source, config["seed"])
    settled, _ = settle_caches(config, inputs, split)
    plans = plan_phases(settled, inputs, inputs.source.labels[split.train])
    flops, stores, state_bytes = 0.0, {}, 0
    for plan in plans:
        is_last = plan is plans[-1]
        step, state = step_flops(plan)
        num_evaluations = math.ceil(plan.num_steps / plan.recipe.evaluate_every)
        predicted = num_evaluations * len(split.val) + is_last * len(split.test)
        flops += step * plan.num_steps * plan.recipe.batch_size
        flops += predicted * _forward_flops(plan, plan.forward.net.depth(plan.start), None)
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        if plan.bank is not None:
            folder = locate_prefix(plan).folder
            if not (folder / META).exists():
                prefix = _forward_flops(plan, 0, plan.start)
                stores[folder] = (prefix * len(inputs.source) * plan.bank.views, prefix_bytes(plan))
    return Counted(flops=flops, stores=stores, state_bytes=state_bytes)


def _forward_flops(plan: Plan, start: int, stop: str | int | None) -> float:
    """Return the FLOPs of some stages for one image, counted likewise."""
    net, shape = plan.forward.net, plan.inputs.pretrained.preprocess.shape
    if stop is not None and net.depth(stop) == 0:
        return 0.0
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, stats = shapes_of(plan.inputs.pretrained.params), shapes_of(plan.inputs.pretrained.stats)
    if start:
        x = jax.eval_shape(functools.partial(net.apply, stop=start), params, stats, x)[0]
    run = functools.partial(net.apply, start=start, stop=stop, kernels=PLAIN_FORMULAS)
    return lower(run, params, stats, x).cost_analysis()["flops"]


def _nearest_seconds(run: Run, finished: Sequence[tuple[Run, Mapping[str, float]]]) -> float:
    """Return the mean of the finished runs whose configs differ from this one's in fewest fields."""
    mine = plain.as_read(run.config)
    distances = [len(plain.differences(plain.as_read(other.config), mine)) for other, _ in finished]
    return statistics.fmean(
        results["seconds"] for (_, results), distance in zip(finished, distances, strict=True)
        if distance == min(distances)
    )  # fmt: skip


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
