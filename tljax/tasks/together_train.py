"""The training of a group of runs: the loop of `finetune.loop`, for all of them at once."""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

from tljax import preemption, processes, rundir
from tljax.finetune.checkpoint import Checkpoints
from tljax.finetune.frozen_record import note_beginning, note_end
from tljax.finetune.sound import ADVICE, problem_of
from tljax.finetune.stacked import choose, put_runs, stack
from tljax.finetune.state import TrainState, averaged
from tljax.tasks.evaluation import as_probabilities, evaluate, main_metric
from tljax.tasks.finetune import FROZEN
from tljax.tasks.together_files import CHECKPOINTS, note_failed, read_failed
from tljax.tasks.together_members import Member
from tljax.tasks.together_program import Program
from tljax.tasks.training import Result, frozen_hash

# A signal to end waits at most about so long for the steps that are under way.
_PACE_S = 5.0

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trained:
    """What a group has come to.

    Args:
        results: {place: what is tested and exported} of the members that came to the end.
        steps: {place: the step that it is from}.
        failed: {place: why} of the others.
    """

    results: dict[int, Result] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def train(members: Sequence[Member], program: Program, folder: Path, left: Collection[int]) -> Trained:
    """Train all members from the latest checkpoint of their group on.

    Each leaves in its directory what `finetune.loop.fit` does, but for checkpoints and times.

    Args:
        members: of the group, in the order of its stacked arrays.
        program: for so many.
        folder: of the group.
        left: places of the members that write; the directories of the others stay as they are.

    Raises:
        Preempted: the process was told to end; the state after the last step is saved.
        RuntimeError: something has moved that was frozen.
    """
    config = {"members": [member.identity for member in members]}
    with (
        Checkpoints(folder / CHECKPOINTS, config) as checkpoints,
        Progress(console=Console(stderr=True)) as progress,
        preemption.notices() as is_told_to_end,
    ):
        group = _Group(members, program, folder, left, checkpoints)
        bar = progress.add_task(f"training {len(members)} runs", total=group.num_steps, completed=group.done)
        while group.done < group.num_steps and group.alive:
            group.advance()
            progress.update(bar, completed=group.done)
            is_told = is_told_to_end(group.done)
            group.save(is_told=is_told)
            if is_told:
                checkpoints.wait()
                raise processes.Preempted(
                    f"told to end by SIGTERM; step {group.done} of {len(members)} runs is saved in "
                    f"{checkpoints.directory}: run the same command again, and it goes on from there"
                )
        return group.finish()


class _Group:
    """The state of all runs, and how far they are.

    A class because the steps of the loop share it.
    """

    def __init__(
        self, members: Sequence[Member], program: Program, folder: Path, left: Collection[int],
        checkpoints: Checkpoints,
    ):  # fmt: skip
        self.members, self.program, self.folder, self.checkpoints = members, program, folder, checkpoints
        self.left = left
        plan = members[0].plan
        self.recipe, self.num_steps, self.source = plan.recipe, plan.num_steps, plan.inputs.source
        self.validates = len(members[0].split.val) > 0
        self.failed = read_failed(folder)
        state = program.initial(members)
        tree = {"state": state, "best": self._no_best(state) if self.recipe.keep == "best" else {}}
        self.tree: dict[str, Any] = checkpoints.restore(tree)
        self.done = checkpoints.latest_step or 0
        self.numbers = put_runs(stack([member.numbers for member in members]), program.mesh)
        self.pace = 1
        for place in self.alive:
            rundir.keep_metrics_before(members[place].workdir / rundir.METRICS, self.done)
        if self.done == 0:
            self._each_hash(note_beginning)

    @property
    def alive(self) -> list[int]:
        """Return the places of the members that go on."""
        return [place for place in range(len(self.members)) if place in self.left and place not in self.failed]

    def advance(self) -> None:
        """Take steps up to the next evaluation or checkpoint, or fewer, and write their metrics."""
        stop = min(self.done + self.pace, self._next_stop())
        began = time.monotonic()
        self.tree["state"], found = self.program.advance(
            self.members, self.tree["state"], self.numbers, self.done, stop
        )
        seconds = (time.monotonic() - began) / (stop - self.done)
        for place in self.alive:
            self._write_steps(place, {name: values[:, place] for name, values in found.items()})
        self.done = stop
        self.pace = min(self.program.most_steps, max(1, int(_PACE_S / seconds)))
        if self.validates and (stop == self.num_steps or stop % self.recipe.evaluate_every == 0):
            self._validate()

    def _next_stop(self) -> int:
        every = [self.recipe.checkpoint_every, *([self.recipe.evaluate_every] if self.validates else [])]
        return min(self.num_steps, *((self.done // count + 1) * count for count in every))

    def _write_steps(self, place: int, found: dict[str, np.ndarray]) -> None:
        """Write the metrics of a member, up to a step from which it cannot go on."""
        member, records = self.members[place], []
        max_loss = math.inf if self.recipe.max_loss is None else self.recipe.max_loss
        rates: Any = member.numbers["rates"]
        rate = rates["head" if "head" in rates else next(iter(member.plan.schedules))]
        for index in range(len(next(iter(found.values())))):
            step, values = self.done + index, {name: float(column[index]) for name, column in found.items()}
            problem = problem_of(values, max_loss)
            if problem is not None:
                self.failed[place] = f"step {step}: {problem}. {ADVICE}"
                log.error("%s: %s", member.workdir, self.failed[place])
                note_failed(self.folder, self.failed)
                break
            records.append({"step": step, "phase": 0, "learning_rate": float(rate[step]), **values})
        rundir.append_all(member.workdir / rundir.METRICS, records)

    def _validate(self) -> None:
        state: TrainState = self.tree["state"]
        trained, stats = averaged(state)
        parts = [member.split.val for member in self.members]
        scores = self.program.score(trained, stats, parts)
        values = np.full(len(self.members), -np.inf, np.float32)
        for place in self.alive:
            metrics = evaluate(self.source, parts[place], as_probabilities(self.source, scores[place]))["metrics"]
            found = {f"val_{name}": float(value) for name, value in metrics.items()}
            rundir.append_metrics(self.members[place].workdir / rundir.METRICS, {**found, "step": self.done - 1})
            values[place] = metrics[main_metric(self.source)]
        if self.tree["best"]:
            self.tree["best"] = _keep_better(self.tree["best"], trained, stats, values, state.step)

    def _no_best(self, state: TrainState) -> dict[str, Any]:
        # Copies, as the state is donated.
        trained, stats, step = jax.tree.map(jnp.copy, (*averaged(state), state.step))
        nothing = put_runs(np.full(len(self.members), -np.inf, np.float32), self.program.mesh)
        return {"trained": trained, "stats": stats, "value": nothing, "step": step}

    def save(self, *, is_told: bool) -> None:
        """Save where that is due."""
        if not (is_told or self.done == self.num_steps or self.done % self.recipe.checkpoint_every == 0):
            return
        for place in self.alive:
            rundir.sync_metrics(self.members[place].workdir / rundir.METRICS)
        self.checkpoints.save(self.done, self.tree)

    def finish(self) -> Trained:
        """Check that what was frozen has not moved, and return what is kept of each member."""
        if self.alive:
            self._each_hash(self._check_hash)
        state, best = self.tree["state"], self.tree["best"]
        trained, stats = (best["trained"], best["stats"]) if best else averaged(state)
        results = {place: Result(trained=choose(trained, place), stats=choose(stats, place)) for place in self.alive}
        steps = jax.device_get(best["step"] if best else state.step)
        return Trained(results=results, steps={place: int(steps[place]) for place in results}, failed=self.failed)

    def _each_hash(self, note: Callable[[Path, int, str], Any]) -> None:
        """Call `note` for each member with the hash of what it froze, which is computed once where it is the same."""
        state, plan = self.tree["state"], self.members[0].plan
        still = jax.device_get({path: stat for path, stat in state.stats.items() if not plan.forward.moves(path)})
        is_same = all(np.array_equal(stat, np.broadcast_to(stat[:1], stat.shape)) for stat in still.values())
        known: str | None = None
        for place in self.alive:
            if known is None or not is_same:
                # Of the stacked state, the paths of what is trained and the statistics alone are looked at.
                own = jax.tree.map(lambda leaf, place=place: leaf[place], state)
                known = frozen_hash([plan], own, self.program.fixed)
            note(self.members[place].workdir / FROZEN, 0, known)

    def _check_hash(self, path: Path, phase: int, after: str) -> None:
        before = note_end(path, phase, after)
        if before != after:
            raise RuntimeError(
                f"{path.parent}: phase {phase} moved what it froze: hash {before}, then {after}; please report this"
            )


def _keep_better(best: dict[str, Any], trained: Any, stats: Any, values: np.ndarray, step: jax.Array) -> dict[str, Any]:
    """Take over the runs whose value is the largest up to now; of equal ones the latest is kept."""
    given = jax.device_put(jnp.asarray(values), best["value"].sharding)
    now = {"trained": trained, "stats": stats, "value": given, "step": step}
    return _better(best, now)


@jax.jit
def _better(best: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    is_better = now["value"] >= best["value"]
    return jax.tree.map(lambda new, old: jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old), now, best)
