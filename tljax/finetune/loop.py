"""The training loop: the one place of a run where something changes with time."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress, TaskID

from tljax import rundir
from tljax.finetune.checkpoint import Checkpoints
from tljax.finetune.step import Arrays, Batch, TrainState


def fit(
    state: TrainState,
    frozen: Arrays,
    train_step: Callable[[TrainState, Arrays, Batch], tuple[TrainState, Arrays]],
    batches: Callable[[int], Iterator[Batch]],
    *,
    num_steps: int,
    schedule: Callable[[int], Any],
    config: Mapping[str, Any],
    checkpoint_dir: str | os.PathLike,
    checkpoint_every: int,
    metrics_path: str | os.PathLike,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None,
    evaluate_every: int,
) -> TrainState:
    """Train to `num_steps`, going on from the latest checkpoint if there is one.

    The final state is a function of the arguments alone, however often the run was killed and resumed,
    if `batches(k)` begins with the batch of step k.

    Args:
        state: before step 0, placed as `train_step` wants it; donated.
        frozen: the frozen params.
        train_step: from `make_train_step`.
        batches: start step -> endless batches from that step on.
        num_steps: of the whole run, those before a resume included.
        schedule: learning rate as a function of the step, for the record.
        config: plain values that determine the run; a checkpoint of another config is refused.
        checkpoint_dir: of this run alone.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        metrics_path: JSON lines. One a step with "step" (from 0), "loss", "accuracy", "grad_norm" and
            "learning_rate" of its update, and one an evaluation with "step" and what was found after that step.
        evaluate: state -> numbers to record; None where there is nothing to evaluate on. It must not keep the state.
        evaluate_every: steps between evaluations; the last step is always evaluated.

    Raises:
        FloatingPointError: loss or gradient is not finite. Such a state is never saved, so the latest
            checkpoint is from before.
        ValueError: a checkpoint of another config or beyond `num_steps`, or `batches` that end.
    """
    with Checkpoints(checkpoint_dir, config) as checkpoints, Progress(console=Console(stderr=True)) as progress:
        state = checkpoints.restore(state)
        first = int(state.step)
        if first > num_steps:
            raise ValueError(f"the checkpoint in {checkpoint_dir} is at step {first}, beyond num_steps = {num_steps}")
        rundir.keep_metrics_before(metrics_path, first)
        bar = progress.add_task("training", total=num_steps, completed=first)
        journal = _Journal(path=metrics_path, schedule=schedule, checkpoints=checkpoints, progress=progress, bar=bar)
        stream = batches(first)
        for step in range(first, num_steps):
            state, metrics = train_step(state, frozen, _next(stream, step))
            journal.begin(step, metrics)
            if evaluate is not None and _is_due(step, evaluate_every, num_steps):
                journal.flush()
                rundir.append_metrics(metrics_path, {**evaluate(state), "step": step})
            if _is_due(step, checkpoint_every, num_steps):
                journal.flush()
                rundir.sync_metrics(metrics_path)
                checkpoints.save(step + 1, state)
    return state


@dataclass(kw_only=True)
class _Journal:
    """Writes the metrics of a step when the next one is under way, so that the device never waits for the host."""

    path: str | os.PathLike
    schedule: Callable[[int], Any]
    checkpoints: Checkpoints
    progress: Progress
    bar: TaskID
    waiting: tuple[int, Arrays] | None = None

    def begin(self, step: int, metrics: Arrays) -> None:
        """Take the metrics of a step, which may not be computed yet, and write those of the one before."""
        self.flush()
        self.waiting = (step, metrics)

    def flush(self) -> None:
        """Wait for the step that is under way and write its metrics."""
        if self.waiting is None:
            return
        step, metrics = self.waiting
        self.waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        _check_finite(step, values, self.checkpoints)
        line = {"step": step, "learning_rate": float(self.schedule(step)), **values}
        rundir.append_metrics(self.path, line)
        self.progress.update(self.bar, completed=step + 1, description=f"training, loss {values['loss']:.4f}")


def _is_due(step: int, every: int, num_steps: int) -> bool:
    """Tell whether something done every so many steps, and at the end, follows this step."""
    return (step + 1) % every == 0 or step + 1 == num_steps


def _next(stream: Iterator[Batch], step: int) -> Batch:
    try:
        return next(stream)
    except StopIteration as error:
        raise ValueError(f"the batches ended before step {step}; batches(start_step) must be endless") from error


def _check_finite(step: int, values: Mapping[str, float], checkpoints: Checkpoints) -> None:
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not broken:
        return
    kept = checkpoints.latest_step
    good = f"the checkpoint of step {kept} in {checkpoints.directory} is good" if kept else "no checkpoint was made yet"
    raise FloatingPointError(
        f"step {step}: {', '.join(f'{name} is {value}' for name, value in broken.items())}; {good}. "
        "Lower the learning rate, clip the gradient, or look for a label out of range in the batch of this step"
    )
