"""What all tasks that write results have in common: one directory, one process, one config, the same inputs."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.tasks.compiled import keep_compiled
from tljax.tasks.execution import execution_of, identity_of
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.sections import select

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
    chosen = select(name, config)
    execution, identity = execution_of(chosen), identity_of(chosen)
    # First without the lock: results can be read where nothing can be written.
    found = rundir.find(workdir, name, identity, has_parts=has_parts)
    if found is not None:
        return found
    with rundir.only_process(workdir):
        found = rundir.find(workdir, name, identity, has_parts=has_parts)
        if found is not None:
            return found
        with keep_compiled(execution.compiled_folder(workdir)):
            opened: Any = inputs or (opens or open_inputs)(chosen)
            rundir.start(workdir, name, identity, opened.identity, dataclasses.asdict(execution))
            started = time.monotonic()
            result = work(chosen, Path(workdir), opened)
        result = {"seconds": time.monotonic() - started, **result}
        rundir.write_json(Path(workdir) / rundir.DONE, result)
        return result
