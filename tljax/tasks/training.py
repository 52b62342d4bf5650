"""The phases of a plan, ready to run, and what they leave behind."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from tljax import plain
from tljax.data.splits import Split, hashed_seed
from tljax.devices import fetch, make_mesh, place, shapes_on
from tljax.finetune.costs import step_batch, trace_step
from tljax.finetune.devices import make_eval_step, make_train_step, predict
from tljax.finetune.groups import partition_table
from tljax.finetune.phases import Phase, shapes_in_phase
from tljax.finetune.state import Fixed, TrainState, averaged, enter_phase, init_state
from tljax.finetune.step import originals, train_body
from tljax.paths import stage_of
from tljax.tasks.evaluation import as_probabilities, evaluate
from tljax.tasks.execution import execution_of
from tljax.tasks.feed import Feed, batch_shapes
from tljax.tasks.plan import Plan
from tljax.weights.adapt import adapt
from tljax.weights.tables import LAYOUTS

LazyFeed = Callable[[], Feed]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run ended with: all params and statistics, low-rank deltas still apart.

    Args:
        trained: params that a phase has trained, averaged where an average is kept; on the host.
        stats: all statistics, likewise.
    """

    trained: dict[str, Any]
    stats: dict[str, Any]

    def params(self, plan: Plan) -> dict[str, Any]:
        """Return all params, the deltas added to their kernels."""
        rest = {path: value for path, value in plan.initial.items() if path not in self.trained}
        return plan.forward.assemble(jax.tree.map(jnp.asarray, self.trained), rest)


def mesh_of(config: Mapping[str, Any]) -> jax.sharding.Mesh:
    """Return the mesh of all devices of all processes that `config.execution` wants."""
    return make_mesh(jax.devices(), fsdp=execution_of(config).fsdp)


def result_of(state: TrainState) -> Result:
    """Take from a state what is tested and exported; all processes must call it."""
    trained, stats = fetch(averaged(state))
    return Result(trained=trained, stats=stats)


def make_phases(plans: list[Plan], feeds: list[LazyFeed], split: Split, seed: int) -> list[Phase]:
    """Make the phases of a run from their plans and where their batches come from."""
    return [_phase(plans, index, feed, split, seed) for index, feed in enumerate(feeds)]


def _phase(plans: list[Plan], index: int, feed: LazyFeed, split: Split, seed: int) -> Phase:
    plan = plans[index]
    # Phases draw on their own; a run of one phase draws as it always has.
    phase_seed = hashed_seed(seed, f"phase {index}") if index else seed
    return Phase(
        num_steps=plan.num_steps,
        enter=functools.partial(_enter, plans, index),
        open_fixed=functools.partial(_open_fixed, plan),
        train_step=make_train_step(step_body(plan), mesh_of(plan.config)),
        batches=lambda step: feed().training(split.train, phase_seed, step),
        evaluate=_validation(plan, feed, split) if len(split.val) else None,
        frozen_hash=functools.partial(frozen_hash, plans[: index + 1]),
        learning_rate=plan.learning_rate,
    )


def step_body(plan: Plan) -> functools.partial:
    """Return the training step of a phase, with all its keywords bound."""
    return functools.partial(
        train_body, forward=plan.forward, tx=plan.optimizer, preprocess=plan.inputs.pretrained.preprocess,
        penalties=plan.penalties, **plan.objective,
    )  # fmt: skip


def check_step(plan: Plan) -> None:
    """Trace a step of a phase, which finds what does not fit before anything is computed or written.

    Raises:
        ValueError: of a penalty, a mix or a loss that cannot take what it would get.
    """
    pretrained, size = plan.inputs.pretrained, plan.recipe.batch_size
    batch = step_batch(plan.forward, size, pretrained.preprocess.shape)
    trace_step(step_body(plan), plan.initial, plan.groups, pretrained.stats, batch)


def partition(plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of `partition_table` for a phase, with the highest rates of its schedules."""
    steps = jnp.arange(plan.num_steps)
    peaks = {label: float(jnp.max(jax.vmap(schedule)(steps))) for label, schedule in plan.schedules.items()}
    decay = plan.config["optimizer"]["weight_decay"]
    return partition_table(plan.groups, plan.initial, learning_rate=peaks, weight_decay=decay)


def _enter(plans: list[Plan], index: int, before: TrainState | None) -> TrainState:
    plan = plans[index]
    if before is None:
        return enter_first(plan)
    resized = resize_state(before, plans[index - 1], plan)
    return enter_phase(
        resized, plan.initial, plan.groups, plan.optimizer, averaged_stats=plan.averaged_stats(resized.stats)
    )


def enter_first(plan: Plan) -> TrainState:
    """Return the state before the first step of a run."""
    trained, _ = plan.groups.split(plan.initial)
    stats = plan.inputs.pretrained.stats
    return init_state(trained, stats, plan.optimizer, averaged_stats=plan.averaged_stats(stats))


def step_arguments(plans: list[Plan], phases: list[Phase], index: int) -> tuple[TrainState, Fixed, dict[str, Any]]:
    """Return the shapes of what the step of a phase takes, before there is any of it."""
    mesh = mesh_of(plans[index].config)
    state = shapes_in_phase(phases, index, mesh)
    return state, shapes_on(fixed_of(plans[index], state), mesh), batch_shapes(plans[index])


def _open_fixed(plan: Plan, state: TrainState) -> Fixed:
    """Bring to the devices what the steps of a phase read."""
    return place(fixed_of(plan, state), mesh_of(plan.config))


def fixed_of(plan: Plan, state: TrainState) -> Fixed:
    """Choose what the steps of a phase read; of the state, only the paths are looked at."""
    net, changed = plan.forward.net, {*state.trained, *state.settled}
    first = net.depth(plan.start)
    running = {path: value for path, value in plan.initial.items() if net.depth(stage_of(path)) >= first}
    fixed = {path: value for path, value in running.items() if path not in changed}
    original, stats = originals(plan.forward, state.trained, plan.penalties, plan.initial, plan.inputs.pretrained.stats)
    return Fixed(params=fixed, original=original, original_stats=stats)


def _validation(plan: Plan, feed: LazyFeed, split: Split) -> Any:
    eval_step = evaluation_step(plan)
    assemble = jax.jit(plan.forward.assemble)
    source = plan.inputs.source

    def validate(state: TrainState, fixed: Fixed) -> dict[str, float]:
        trained, stats = averaged(state)
        params = assemble(_of_running_stages(plan, trained), fixed.params)
        indices, scores = predict(eval_step, params, stats, feed().ordered(split.val), mesh_of(plan.config))
        metrics = evaluate(source, indices, as_probabilities(source, scores))["metrics"]
        return {f"val_{name}": value for name, value in metrics.items()}

    return validate


def evaluation_step(plan: Plan) -> Any:
    """Compile the prediction of scores from what the steps of a phase read."""
    return make_eval_step(
        plan.forward.net, plan.inputs.pretrained.preprocess, mesh_of(plan.config), start=plan.start,
        compute_dtype=plan.forward.compute_dtype, kernels=plan.forward.kernels, probabilities=lambda scores: scores,
    )  # fmt: skip


def score_images(
    plan: Plan, result: Result, feed: Feed, parts: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each list of images their indices, and the scores that a result gives their classes.

    All processes must call it.
    """
    mesh, step = mesh_of(plan.config), evaluation_step(plan)
    params, stats = place((_of_running_stages(plan, result.params(plan)), result.stats), mesh)
    none = np.zeros(0, np.int64), np.zeros((0, plan.inputs.num_classes), np.float32)
    return [predict(step, params, stats, feed.ordered(part), mesh) if len(part) else none for part in parts]


def _of_running_stages(plan: Plan, params: Mapping[str, Any]) -> dict[str, Any]:
    net = plan.forward.net
    return {path: value for path, value in params.items() if net.depth(stage_of(path)) >= net.depth(plan.start)}


def resize_state(state: TrainState, before: Plan, after: Plan) -> TrainState:
    """Give params that depend on the image size, position embeddings, the size of the next phase."""
    native, target = before.forward.net.architecture, after.forward.net.architecture
    positions = LAYOUTS[after.inputs.pretrained.layout].positions

    def resize(values: Mapping[str, Any]) -> dict[str, Any]:
        return {path: _resized(path, value) for path, value in values.items()}

    def _resized(path: str, value: Any) -> Any:
        wanted = after.initial.get(path, value)
        if value.shape == wanted.shape:
            return value
        if isinstance(value, core.Tracer):
            # Traced for its shape alone; resampling is done by numpy, in float64.
            return jnp.zeros(wanted.shape, value.dtype)
        return jnp.asarray(adapt(path, np.asarray(value), native, target, positions))

    return dataclasses.replace(
        state, trained=resize(state.trained), settled=resize(state.settled), average=resize(state.average)
    )


def frozen_hash(plans: list[Plan], state: TrainState, fixed: Fixed) -> str:
    """Hash the params and statistics that may not move in the last of these phases.

    As the devices hold them; those of a stored prefix, which are on none, as the host does. All processes must call it.
    """
    plan = plans[-1]
    still = {path: stat for path, stat in state.stats.items() if not plan.forward.moves(path)}
    frozen = {path: value for path, value in plan.initial.items() if path not in state.trained}
    held = {**frozen, **fixed.params, **state.settled, **still}
    return plain.fingerprint({path: plain.fingerprint(fetch(value)) for path, value in held.items()})
