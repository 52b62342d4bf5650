"""What all tasks that write results have in common: one directory, one process, one config, the same inputs."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from tljax import plain, processes, rundir
from tljax.tasks.compiled import keep_compiled
from tljax.tasks.execution import execution_of, identity_of
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.sections import select

# The tasks that several processes can run together.
SEVERAL = ("extract", "finetune")

Work = Callable[[Mapping[str, Any], Path, Any], dict[str, float]]


def run_task(
    name: str,
    work: Work,
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    inputs: Inputs | None = None,
    opens: Callable[[Mapping[str, Any]], Any] | None = None,
    has_parts: bool = False,
) -> dict[str, float]:
    """Run a task in its directory, unless it is finished.

    Args:
        name: of the task.
        work: (config, workdir, inputs) -> results; does what is left to do.
        config: may hold sections of other tasks.
        workdir: of the run.
        inputs: of the config, where they are open.
        opens: config -> inputs, which have an `identity`: another where they are not data and one pretrained net.
        has_parts: see `rundir.find`.

    Returns:
        The results; "seconds" are those since the last start, unless `work` knows better.

    Raises:
        ValueError: the config does not fit, the directory is in use, or it holds a run of another config or inputs.
    """
    if processes.are_several() and name not in SEVERAL:
        raise ValueError(
            f"tljax {name} runs in one process, and this is one of {jax.process_count()}; several take "
            f"{' and '.join(SEVERAL)}"
        )
    chosen = select(name, config)
    execution, identity = execution_of(chosen), identity_of(chosen)

    def find() -> dict[str, float] | None:
        return rundir.find(workdir, name, identity, has_parts=has_parts)

    # First without the lock: results can be read where nothing can be written.
    found = processes.on_first(find)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        found = processes.on_first(lambda: stack.enter_context(rundir.only_process(workdir)) or find())
        if found is not None:
            return found
        stack.enter_context(keep_compiled(execution.compiled_folder(workdir)))
        opened: Any = inputs or (opens or open_inputs)(chosen)
        _check_same(opened.identity)
        processes.on_first(
            lambda: rundir.start(workdir, name, identity, opened.identity, dataclasses.asdict(execution))
        )
        started = time.monotonic()
        result = work(chosen, Path(workdir), opened)
        result = {"seconds": time.monotonic() - started, **result}
        processes.on_first(lambda: rundir.write_json(Path(workdir) / rundir.DONE, result))
        return result


def _check_same(identity: Mapping[str, Any]) -> None:
    """Refuse to run together with processes that have read other weights or images.

    Raises:
        ValueError: in the processes that differ from the first.
    """
    problems = plain.differences(plain.as_read(processes.on_first(lambda: identity)), plain.as_read(identity))
    if problems:
        raise ValueError(
            f"process {jax.process_index()} has other inputs than process 0, which are named there and now; bring the "
            "same files to all machines:\n  " + "\n  ".join(problems)
        )
