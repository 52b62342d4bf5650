"""Fine-tune: frozen early stages, late stages at a low rate, a new head at a higher one."""

import functools
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax import processes, rundir
from tljax.data.sources import Source
from tljax.data.splits import Split, save_split
from tljax.finetune.groups import format_partition
from tljax.finetune.loop import fit, load_best
from tljax.finetune.phases import Phase
from tljax.finetune.state import TrainState
from tljax.tasks.caching import CACHES, settle_caches, train_tflops
from tljax.tasks.calibrating import calibrate
from tljax.tasks.drifting import measure_drift
from tljax.tasks.evaluation import as_probabilities, check_choice, check_evaluation, evaluate, main_metric
from tljax.tasks.execution import execution_of, identity_of
from tljax.tasks.facts import note_facts
from tljax.tasks.feed import Feed, open_once
from tljax.tasks.inputs import CLASSES, SPLIT, Inputs, open_split
from tljax.tasks.plan import Plan
from tljax.tasks.relative import NORMS, plan_run
from tljax.tasks.running import run_task
from tljax.tasks.sections import call
from tljax.tasks.startup import STARTUP, Startup
from tljax.tasks.training import (
    Result,
    make_phases,
    mesh_of,
    partition,
    result_of,
    score_images,
    step_arguments,
)
from tljax.tasks.tuned import save_tuned

NAME = "finetune"
# In the run directory.
CHECKPOINTS = "checkpoints"
PARTITION = "partition.json"
FROZEN = "frozen.json"

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Fine-tune on one split and test; idempotent and resumable."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Train from the latest checkpoint on, and test."""
    startup = Startup(workdir / STARTUP, inputs.opening_s)
    source = inputs.source
    call("evaluate", config, check_evaluation, source)
    split = open_split(config, source, workdir)
    config, decisions = settle_caches(config, inputs, split, workdir)
    plans, norms = plan_run(config, inputs, split, workdir)
    if plans[0].recipe.keep == "best":
        check_choice(source, split.val)
    rows = [partition(plan) for plan in plans]
    for plan, of_phase in zip(plans, rows, strict=True):
        log.info("%d steps\n%s", plan.num_steps, format_partition(of_phase))
    feeds = open_once(plans)
    startup.mark("plan")
    phases = make_phases(plans, feeds, split, config["seed"])
    arguments = [functools.partial(step_arguments, plans, phases, index) for index in range(len(phases))]
    phases = startup.watch(phases, arguments, workdir / CHECKPOINTS)
    # Computed now, while the directory can still be left to a mended config.
    feeds[0]()
    startup.mark("stored prefix")
    # After all that a mistake in the config can stop, which leaves the directory free for the mended one.
    processes.on_first(lambda: note_plan(workdir, source, split, rows, decisions, norms))
    state, index = _train(config, phases, plans[0], workdir)
    plan, feed = plans[index], feeds[index]()
    before, after = inputs.identity["params"], inputs.pretrained.fingerprint()
    if before != after:
        raise RuntimeError(f"the pretrained params moved: hash {before} before, {after} after; please report this")
    result = result_of(state)
    scores = score_images(plan, result, feed, (split.val, split.test))

    def finish() -> dict[str, float]:
        return conclude(workdir, plan, feed, split, result, int(state.step), scores, train_tflops(plans))

    return processes.on_first(finish)


def note_plan(
    workdir: Path, source: Source, split: Split, rows: list[list[dict[str, Any]]], decisions: list[dict[str, Any]],
    norms: Mapping[str, float] | None,
) -> None:  # fmt: skip
    """Write what has been decided before the first step."""
    save_split(workdir / SPLIT, split, source)
    if decisions:
        rundir.write_json(workdir / CACHES, decisions)
    if norms is not None:
        rundir.write_json(workdir / NORMS, norms)
    rows_of_run = [{**row, "phase": index} for index, of_phase in enumerate(rows) for row in of_phase]
    rundir.write_json(workdir / PARTITION, rows_of_run)
    rundir.write_json(workdir / CLASSES, list(source.class_names))


def conclude(
    workdir: Path, plan: Plan, feed: Feed, split: Split, result: Result, step: int,
    scores: list[tuple[np.ndarray, np.ndarray]], flops: Mapping[str, float],
) -> dict[str, float]:  # fmt: skip
    """Write what the run ended with, given the scores of validation and test images; return its metrics.

    Args:
        workdir: of the run.
        plan: of its last phase.
        feed: of that phase.
        split: of the run.
        result: what it keeps.
        step: that this is of.
        scores: see `training.score_images`, of the validation and the test part.
        flops: see `caching.train_tflops`.
    """
    source = plan.inputs.source
    save_tuned(workdir, plan, result)
    (of_val, of_test) = scores
    calibrate(workdir, source, of_val, of_test)
    note_facts(workdir, plan.inputs, split)
    found = of_test[0], as_probabilities(source, of_test[1])
    moved = measure_drift(plan, result, feed.alone(), split.val[: plan.recipe.drift_images], workdir)
    record = {
        "method": NAME,
        "features": f"from {plan.groups.train_from}",
        "depth": None,
        "chosen": {"step": step} if plan.recipe.keep == "best" else {},
        **call("evaluate", plan.config, evaluate, source, *found),
    }
    _save_predictions(workdir / "predictions.npz", *found)
    rundir.write_json(workdir / "evaluations.json", [record])
    reused = {} if feed.store is None else {"share_reused": feed.store.share_reused}
    num_trained = float(sum(value.size for value in result.trained.values()))
    return {**record["metrics"], "num_trained": num_trained, **flops, **reused, **moved}


def _train(config: Mapping[str, Any], phases: list[Phase], plan: Plan, workdir: Path) -> tuple[TrainState, int]:
    """Train to the last step; return the state that is to be kept, and the number of its phase."""
    recipe = plan.recipe
    keep_best = f"val_{main_metric(plan.inputs.source)}" if recipe.keep == "best" else None
    saved: dict[str, Any] = {
        "mesh": mesh_of(config),
        "config": identity_of(config),
        "checkpoint_dir": workdir / CHECKPOINTS,
    }
    state = fit(
        phases,
        **saved,
        checkpoint_every=recipe.checkpoint_every,
        metrics_path=workdir / rundir.METRICS,
        timing_path=workdir / rundir.TIMING,
        frozen_path=workdir / FROZEN,
        evaluate_every=recipe.evaluate_every,
        keep_best=keep_best,
        max_loss=recipe.max_loss,
        save_timeout_s=execution_of(config).save_timeout_s,
    )
    if keep_best is None:
        return state, len(phases) - 1
    return load_best(phases, **saved, keep_best=keep_best)


def _save_predictions(path: Path, indices: np.ndarray, probabilities: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, index=indices, probabilities=probabilities)
    rundir.write_bytes(path, buffer.getvalue())
