"""Training steps that are compiled from shapes alone, in the background, before there is anything to train on."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax

from tljax.tasks.compiled import count_events

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled step, and what it took.

    Args:
        step: takes arrays of the shapes that it was lowered for, and no others.
        arguments: these shapes.
        lower_s: seconds of tracing and lowering.
        compile_s: seconds of compiling, or of reading from the cache.
        is_from_cache: whether it was read.
    """

    step: Callable[..., Any]
    arguments: Any
    lower_s: float
    compile_s: float
    is_from_cache: bool


def compile_step(step: Any, arguments: tuple[Any, ...]) -> Compiled:
    """Lower and compile a jitted function for arguments of these shapes."""
    began = time.perf_counter()
    lowered = step.lower(*arguments)
    lowered_at = time.perf_counter()
    with count_events(threading.get_ident()) as events:
        compiled = lowered.compile()
    return Compiled(
        step=compiled,
        arguments=arguments,
        lower_s=lowered_at - began,
        compile_s=time.perf_counter() - lowered_at,
        is_from_cache=events["cache_hits"] > 0,
    )


class AheadOfTime:
    """A jitted training step that can be compiled before it is called.

    A class because two threads share its state: one compiles, the other waits.

    Args:
        step: jitted.
        arguments: -> the shapes of the arrays that it will be called with.
    """

    def __init__(self, step: Any, arguments: Callable[[], tuple[Any, ...]]):
        self.jitted, self.arguments = step, arguments
        self._pending: Future[Compiled] | None = None
        self._chosen: Callable[..., Any] | None = None

    def begin(self) -> None:
        """Compile in the background, unless that has begun."""
        if self._pending is None:
            pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
            self._pending = pool.submit(lambda: compile_step(self.jitted, self.arguments()))
            pool.shutdown(wait=False)

    def wait(self) -> Compiled:
        """Return the compiled step; raises what its compilation raised."""
        self.begin()
        assert self._pending is not None
        return self._pending.result()

    def __call__(self, *arguments: Any) -> Any:
        """Take a step, compiled ahead or, should the arrays be others than was foreseen, now."""
        step = self._chosen
        if step is None:
            compiled = self.wait()
            problems = differences(arguments, compiled.arguments)
            if problems:
                # No error: what is computed is the same, later.
                log.warning("the step was compiled for other arrays, and is compiled again: %s", "; ".join(problems))
            self._chosen = step = self.jitted if problems else compiled.step
        return step(*arguments)


def differences(arrays: Any, shapes: Any) -> list[str]:
    """List where arrays are not of these shapes and dtypes."""
    got, wanted = _kinds(arrays), _kinds(shapes)
    problems = [f"no {path}" for path in wanted if path not in got]
    problems += [f"{path} besides" for path in got if path not in wanted]
    problems += [
        f"{path} is {got[path]}, not {wanted[path]}" for path in got.keys() & wanted.keys() if got[path] != wanted[path]
    ]
    return sorted(problems)


def _kinds(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
