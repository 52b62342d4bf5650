"""What a training step changes, what it only reads, and how one phase of a run hands over to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import paths
from tljax.finetune.averages import update_average
from tljax.finetune.groups import Groups
from tljax.finetune.optimizer import carry_over

Arrays = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training step changes, or an earlier phase of the run has changed.

    Args:
        trained: the trained params.
        settled: params that an earlier phase trained and this one does not.
        stats: running statistics of all stages; those of frozen stages do not move.
        opt_state: of the optimizer over `trained`.
        average: exponential moving average of params and statistics that move or have moved; empty where none is kept.
        step: number of steps taken since the beginning of the run, int32.
    """

    # Flat dicts by path; Orbax builds states of other things than arrays too, and of one leaf for an empty dict.
    trained: Any
    settled: Any
    stats: Any
    opt_state: Any
    average: Any
    step: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What a training step reads and does not change.

    Args:
        params: those that no phase up to now has trained, at least of the stages that run.
        original: every param of the pretrained net, for penalties; empty where none wants it.
        original_stats: likewise.
    """

    params: Arrays
    original: Arrays = field(default_factory=dict)
    original_stats: Arrays = field(default_factory=dict)


def init_state(
    trained: Arrays, stats: Arrays, tx: optax.GradientTransformation, *, averaged_stats: Mapping[str, Any] | None = None
) -> TrainState:
    """Return the state before the first step.

    Args:
        trained: the trained params.
        stats: statistics of all stages.
        tx: optimizer over `trained`.
        averaged_stats: the statistics to average beside the trained params; None keeps no average.
    """
    average = {} if averaged_stats is None else {**trained, **averaged_stats}
    return TrainState(
        trained=trained, settled={}, stats=stats, opt_state=tx.init(trained), average=average,
        step=jnp.zeros((), jnp.int32),
    )  # fmt: skip


def enter_phase(
    state: TrainState,
    untrained: Arrays,
    groups: Groups,
    tx: optax.GradientTransformation,
    *,
    averaged_stats: Mapping[str, Any] | None = None,
) -> TrainState:
    """Return the state at the beginning of a phase from that at the end of the one before.

    Params that stay trained keep their optimizer state, others start with a fresh one; those that are trained no more
    settle where they are. The schedules begin again.

    Args:
        state: at the end of the last phase.
        untrained: the values of params that no phase has trained yet.
        groups: of the new phase.
        tx: its optimizer.
        averaged_stats: as for `init_state`; what is averaged already goes on from there.
    """
    moved = {**state.settled, **state.trained}
    current = {**{path: value for path, value in untrained.items() if path not in moved}, **moved}
    trained, _ = groups.split(current)
    fresh: Any = tx.init(trained)
    started = {} if averaged_stats is None else {**trained, **averaged_stats}
    return TrainState(
        trained=trained,
        settled={path: value for path, value in moved.items() if path not in trained},
        stats=state.stats,
        opt_state=carry_over(state.opt_state, fresh),
        average={**started, **state.average},
        step=state.step,
    )


def update_averages(state: TrainState, trained: Arrays, stats: Arrays, decay: float | None) -> Arrays:
    """Move the average by one step, where one is kept.

    What has settled is averaged on, as a value that stays: the steps of a later phase see that value, and an average
    left behind would be of another net than they train.

    Args:
        state: before the step.
        trained: after it.
        stats: of all stages, after it.
        decay: as for `update_average`; None keeps no average.
    """
    if decay is None:
        return state.average
    now = {**state.settled, **stats, **trained}
    return update_average(state.average, {path: now[path] for path in state.average}, state.step, decay)


def averaged(state: TrainState) -> tuple[Arrays, Arrays]:
    """Return the params that have been trained and all statistics, averaged where an average is kept."""
    params = paths.merge(state.trained, state.settled)
    return (
        {path: state.average.get(path, value) for path, value in params.items()},
        {path: state.average.get(path, value) for path, value in state.stats.items()},
    )
