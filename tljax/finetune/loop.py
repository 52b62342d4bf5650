"""The training loop: the one place of a run where something changes with time."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress, TaskID

from tljax import preemption, processes, rundir
from tljax.data.prefetch import Ahead
from tljax.devices import fetch, place
from tljax.finetune.checkpoint import Checkpoints
from tljax.finetune.devices import put_inputs
from tljax.finetune.frozen_record import note_beginning, note_end
from tljax.finetune.phases import Phase, first_step, phase_of_state, shapes_in_phase
from tljax.finetune.sound import check_sound
from tljax.finetune.state import Arrays, Fixed, TrainState
from tljax.finetune.step import Batch
from tljax.finetune.waiting import WaitingMeter

log = logging.getLogger(__name__)


def fit(
    phases: Sequence[Phase],
    *,
    mesh: Mesh,
    config: Mapping[str, Any],
    checkpoint_dir: str | os.PathLike,
    checkpoint_every: int,
    metrics_path: str | os.PathLike,
    frozen_path: str | os.PathLike,
    evaluate_every: int,
    keep_best: str | None = None,
    max_loss: float | None = None,
    save_timeout_s: int | None = None,
    timing_path: str | os.PathLike | None = None,
) -> TrainState:
    """Train through all phases, going on from the latest checkpoint if there is one.

    The final state is a function of the arguments alone, however often the run was killed and resumed,
    if `batches(k)` of a phase begins with the batch of its step k.

    Args:
        phases: in order.
        mesh: the devices that the train steps were made for; may be others than a checkpoint was saved from.
        config: plain values that determine the run; a checkpoint of another config is refused.
        checkpoint_dir: of this run alone.
        checkpoint_every: steps between checkpoints; the last step of each phase is always saved.
        metrics_path: JSON lines. One a step with "step" (from 0), "phase" (likewise), "loss", "accuracy", "grad_norm"
            and "learning_rate" of its update, and one an evaluation with "step" and what was found after that step.
        frozen_path: JSON; the hash of what each phase froze, before its first step and after its last.
        evaluate_every: steps between evaluations; the last step of each phase is always evaluated.
        keep_best: name of an evaluated number. Every evaluation is then a checkpoint too, and the one with the largest
            number is kept beside the latest ones.
        max_loss: a loss above it is taken for divergence; None takes none.
        save_timeout_s: see `Checkpoints`.
        timing_path: JSON lines, one a step; see `WaitingMeter`.

    Returns:
        The state after the last step.

    Raises:
        FloatingPointError: loss or gradient is not finite, or the loss is above `max_loss`. Such a state is never
            saved, so the latest checkpoint is from before.
        ValueError: a checkpoint of another config or beyond the last phase, batches that end, or a phase that goes on
            without its record in `frozen_path`.
        RuntimeError: a phase has moved what it froze.
        Preempted: the process was told to end; the state after its last step is saved.
    """
    with (
        Checkpoints(checkpoint_dir, config, keep_best=keep_best, timeout_s=save_timeout_s) as checkpoints,
        Progress(console=Console(stderr=True), disable=not processes.is_first()) as progress,
        preemption.notices() as is_told_to_end,
    ):
        state, index = _resume(phases, checkpoints, mesh)
        done = 0 if state is None else int(state.step)
        if processes.is_first():
            rundir.keep_metrics_before(metrics_path, done)
        num_steps = first_step(phases, len(phases))
        journal = _Journal(
            path=metrics_path,
            frozen_path=frozen_path,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            evaluate_every=evaluate_every,
            keeps_best=keep_best is not None,
            max_loss=math.inf if max_loss is None else max_loss,
            is_told_to_end=is_told_to_end,
            mesh=mesh,
            meter=WaitingMeter(timing_path if processes.is_first() else None),
            progress=progress,
            bar=progress.add_task("training", total=num_steps, completed=done),
        )
        for number in range(index, len(phases)):
            phase, first = phases[number], first_step(phases, number)
            if state is None or done == first:
                # From the host: the devices need not hold two states.
                state = place(phase.enter(None if state is None else fetch(state)), mesh)
            state = _train(phase, number, first, state, done, journal)
            done = first + phase.num_steps
        journal.meter.report()
    assert state is not None
    return state


def _train(phase: Phase, number: int, first: int, state: TrainState, done: int, journal: "_Journal") -> TrainState:
    """Take the steps of a phase that are left, of which there may be none."""
    fixed, last = phase.open_fixed(state), first + phase.num_steps
    if done == first:
        digest = phase.frozen_hash(state, fixed)
        processes.on_first(lambda: note_beginning(journal.frozen_path, number, digest))
    stream = phase.batches(done - first) if done < last else iter(())
    with Ahead(stream, lambda batch: put_inputs(batch, journal.mesh)) as ahead:
        for step in range(done, last):
            batch = _next(ahead, step)
            state, metrics = phase.train_step(state, fixed, batch)
            journal.begin(step, {"phase": number, "learning_rate": phase.learning_rate(step - first), **metrics})
            journal.meter.note(step, ahead, len(batch["label"]))
            journal.end(step, phase, state, fixed, is_last=step + 1 == last)
    after = phase.frozen_hash(state, fixed)
    before = processes.on_first(lambda: note_end(journal.frozen_path, number, after))
    if before != after:
        raise RuntimeError(f"phase {number} moved what it froze: hash {before}, then {after}; please report this")
    log.info("phase %d: what it froze has the hash %s, before and after", number, after)
    return state


def _resume(phases: Sequence[Phase], checkpoints: Checkpoints, mesh: Mesh) -> tuple[TrainState | None, int]:
    """Return the latest state, if any, and the phase that its next step belongs to, or the last one at the end."""
    step = processes.on_first(lambda: checkpoints.latest_step)
    if step is None:
        return None, 0
    index = phase_of_state(phases, step)
    return checkpoints.restore(shapes_in_phase(phases, index, mesh), step), index


@dataclass(kw_only=True)
class _Journal:
    """Writes metrics and checkpoints.

    The metrics of a step are written when the next one is under way, so that the device never waits for the host.
    """

    path: str | os.PathLike
    frozen_path: str | os.PathLike
    checkpoints: Checkpoints
    checkpoint_every: int
    evaluate_every: int
    keeps_best: bool
    max_loss: float
    is_told_to_end: Callable[[int], bool]
    mesh: Mesh
    meter: WaitingMeter
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
        check_sound(step, values, self.max_loss, self.checkpoints)
        self._write({"step": step, **values, "phase": int(values["phase"])})
        seen = f"loss {values['loss']:.4f}, {100 * self.meter.share:.0f} % waiting for data"
        self.progress.update(self.bar, completed=step + 1, description=f"training, {seen}")

    def end(self, step: int, phase: Phase, state: TrainState, fixed: Fixed, *, is_last: bool) -> None:
        """Evaluate and save, where that is due after a step."""
        found = None
        if phase.evaluate is not None and (is_last or (step + 1) % self.evaluate_every == 0):
            self.flush()
            found = {name: float(value) for name, value in phase.evaluate(state, fixed).items()}
            self._write({**found, "step": step})
        is_told_to_end = self.is_told_to_end(step + 1)
        is_best_sought = self.keeps_best and found is not None
        if is_last or is_best_sought or is_told_to_end or (step + 1) % self.checkpoint_every == 0:
            self.flush()
            if processes.is_first():
                rundir.sync_metrics(self.path)
            self.checkpoints.save(step + 1, state, found)
        if is_told_to_end:
            self.checkpoints.wait()
            raise processes.Preempted(
                f"told to end by SIGTERM; step {step + 1} is saved in {self.checkpoints.directory}: run the same "
                "command again, and it goes on from there"
            )

    def _write(self, record: Mapping[str, Any]) -> None:
        if processes.is_first():
            rundir.append_metrics(self.path, record)


def _next(stream: Iterator[Batch], step: int) -> Batch:
    try:
        return next(stream)
    except StopIteration as error:
        raise ValueError(f"the batches ended before step {step}; batches(start_step) must be endless") from error


def load_best(
    phases: Sequence[Phase],
    *,
    mesh: Mesh,
    config: Mapping[str, Any],
    checkpoint_dir: str | os.PathLike,
    keep_best: str,
) -> tuple[TrainState, int]:
    """Return the state with the largest `keep_best` of a finished run, and the phase that it belongs to.

    Raises:
        ValueError: nothing was evaluated.
    """
    with Checkpoints(checkpoint_dir, config, keep_best=keep_best) as checkpoints:
        step = processes.on_first(lambda: checkpoints.best_step)
        if step is None:
            raise ValueError(
                f"no checkpoint in {checkpoint_dir} has {keep_best!r}: nothing was evaluated; give the split a "
                "validation part, or keep the last"
            )
        index = phase_of_state(phases, step)
        return checkpoints.restore(shapes_in_phase(phases, index, mesh), step), index
