"""The time from the start of a run to its first step, and what of it is spent on."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tljax import processes, rundir
from tljax.finetune.checkpoint import last_saved
from tljax.finetune.phases import Phase, phase_of_state
from tljax.tasks.ahead import AheadOfTime, Compiled

# In the run directory.
STARTUP = "startup.json"

log = logging.getLogger(__name__)


class Startup:
    """The clock of one start of a run.

    A class because phases that are ready to run stop it, whichever comes first.

    Args:
        path: JSON; one record for each start that took a step.
        opening_s: seconds that the inputs took to open, by what was opened.
    """

    def __init__(self, path: Path, opening_s: Mapping[str, float]):
        self.path, self.parts_s = path, dict(opening_s)
        self._last = time.perf_counter()
        self._is_over = False

    def mark(self, name: str) -> None:
        """Note that all time since the mark before was spent on this."""
        now = time.perf_counter()
        self.parts_s[name] = self.parts_s.get(name, 0.0) + now - self._last
        self._last = now

    def watch(
        self, phases: Sequence[Phase], arguments: Sequence[Callable[[], tuple[Any, ...]]], checkpoint_dir: Path
    ) -> list[Phase]:
        """Return the phases, the step of the next one being compiled in the background.

        Args:
            phases: of the run; their train steps are jitted.
            arguments: of each phase -> the shapes of the arguments of its step.
            checkpoint_dir: of the run, which says what phase is next.
        """
        steps = [AheadOfTime(phase.train_step, shapes) for phase, shapes in zip(phases, arguments, strict=True)]
        done = last_saved(checkpoint_dir)
        if done < sum(phase.num_steps for phase in phases):
            steps[phase_of_state(phases, done + 1)].begin()
        return [
            dataclasses.replace(
                phase,
                open_fixed=self._marked(phase.open_fixed, "state to the devices"),
                frozen_hash=self._marked(phase.frozen_hash, "hash of what is frozen"),
                train_step=self._timed(step, following),
            )
            for phase, step, following in zip(phases, steps, [*steps[1:], None], strict=True)
        ]

    def _marked(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            if not self._is_over:
                self.mark(name)
            return result

        return call

    def _timed(self, step: AheadOfTime, following: AheadOfTime | None) -> Callable[..., Any]:
        has_begun = False

        def run(*arguments: Any) -> Any:
            nonlocal has_begun
            if not self._is_over:
                self.mark("first batch")
                compiled = step.wait()
                self.mark("wait for the compiled step")
                result = jax.block_until_ready(step(*arguments))
                self.mark("first step")
                self._report(compiled)
            else:
                result = step(*arguments)
            if not has_begun and following is not None:
                following.begin()
            has_begun = True
            return result

        return run

    def _report(self, compiled: Compiled) -> None:
        self._is_over = True
        total = sum(self.parts_s.values())
        record = {
            "total_s": total,
            "parts_s": self.parts_s,
            "lower_s": compiled.lower_s,
            "compile_s": compiled.compile_s,
            "is_compiled_from_cache": compiled.is_from_cache,
            "first_step_at": time.time(),
        }
        if processes.is_first():
            earlier = rundir.read_json(self.path) if self.path.exists() else []
            rundir.write_json(self.path, [*earlier, record])
        log.info(
            "first step after %.1f s: %s; in the background: lower %.1f, %s %.1f",
            total,
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts_s.items()),
            compiled.lower_s,
            "read the compiled step" if compiled.is_from_cache else "compile",
            compiled.compile_s,
        )
