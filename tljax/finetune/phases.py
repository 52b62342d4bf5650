"""A run as a list of phases: which one a step belongs to is a function of the step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from tljax.devices import shapes_on
from tljax.finetune.state import Arrays, Fixed, TrainState
from tljax.finetune.step import Batch


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with a partition, rates and a length of its own.

    Args:
        num_steps: at least 1.
        enter: the state at the end of the phase before, None for the first -> that at the beginning of this one. A
            pure function of arrays; the checkpoints of a phase have the shapes that it gives.
        open_fixed: the state at the beginning, or from a checkpoint of this phase -> what the steps only read, on the
            devices.
        train_step: from `make_train_step`.
        batches: number of steps of this phase that are behind -> endless batches from there on.
        evaluate: (state, fixed) -> numbers to record; None where there is nothing to evaluate on. It must not keep the
            state.
        frozen_hash: (state, fixed) -> hash of what may not move in this phase, as the devices hold it.
        learning_rate: step of this phase -> rate before multipliers, for the record.
    """

    num_steps: int
    enter: Callable[[TrainState | None], TrainState]
    open_fixed: Callable[[TrainState], Fixed]
    train_step: Callable[[TrainState, Fixed, Batch], tuple[TrainState, Arrays]]
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[[TrainState, Fixed], Mapping[str, float]] | None
    frozen_hash: Callable[[TrainState, Fixed], str]
    learning_rate: Callable[[int], Any]


def first_step(phases: Sequence[Phase], index: int) -> int:
    """Return the step of the run at which a phase begins."""
    return sum(phase.num_steps for phase in phases[:index])


def phase_of_state(phases: Sequence[Phase], step: int) -> int:
    """Return the phase that a state after `step` steps has the shapes of: the one that took the last step.

    Raises:
        ValueError: the step is beyond the last phase.
    """
    for index, phase in enumerate(phases):
        if step <= first_step(phases, index) + phase.num_steps:
            return index
    raise ValueError(f"step {step} is beyond the {len(phases)} phases, which end at {first_step(phases, len(phases))}")


def shapes_in_phase(phases: Sequence[Phase], index: int, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and places of the state in a phase, without an array."""
    state: Any = None
    for phase in phases[: index + 1]:
        state = jax.eval_shape(phase.enter, state)
    return shapes_on(state, mesh)
