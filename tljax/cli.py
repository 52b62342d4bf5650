"""Command line: `tljax TASK --config=FILE --workdir=DIR [--config.a.b=value]`, and `tljax COMMAND ...`."""

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from jax.errors import JaxRuntimeError

from tljax import preemption, processes
from tljax.arguments import make_flags, parse_config
from tljax.process_groups import Group

USAGE = """tljax: transfer learning for vision

  tljax TASK --config=FILE[:ARGUMENT] --workdir=DIR [--config.section.key=value ...]

Tasks:
{tasks}

Commands, which have arguments of their own (`tljax COMMAND --help`):
{commands}

Options:
  --config       file with get_config(); its fields are overridden with --config.section.key=value
  --workdir      where the run writes; a finished run returns its result, a half-finished one goes on (explain needs
                 none)
  --coordinator, --num_processes, --process_id
                 HOST:PORT of process 0, how many processes run this task together, and which this one is; SLURM, Open
                 MPI and TPU pods say so themselves
  --[no]traceback  show where in the code an error comes from (default: no)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task.

    Returns:
        The exit status: 0, or `processes.FAILED` after an error that the user can mend, or `processes.REQUEUE` where
        the run was told to end and the same command goes on with it.
    """
    # transformers says at import that torch is missing, which here is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from tljax.commands import COMMANDS
    from tljax.paths import did_you_mean
    from tljax.tasks import TASKS

    arguments = list(sys.argv[1:] if argv is None else argv)
    asks_for_help = not {"-h", "--help"}.isdisjoint(arguments)
    if arguments and arguments[0] in COMMANDS:
        return _run_command(COMMANDS[arguments[0]][0], arguments, asks_for_help=asks_for_help)
    if not arguments or arguments[0] == "help" or asks_for_help:
        summaries = [
            "\n".join(f"  {name:<14} {summary}" for name, (_, summary) in known.items()) for known in (TASKS, COMMANDS)
        ]
        print(USAGE.format(tasks=summaries[0], commands=summaries[1]))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in TASKS:
        known = (*TASKS, *COMMANDS)
        return _fail(f"no task {name!r}{did_you_mean(name, known)}; tasks and commands are {', '.join(known)}")
    return _run_task(name, arguments)


def _run_task(name: str, arguments: list[str]) -> int:
    from tljax.tasks import TASKS, WITHOUT_WORKDIR

    _log_to_stderr()
    options = make_flags(workdir=str, coordinator=str, num_processes=int, process_id=int, traceback=bool)
    show_traceback = False
    try:
        rest = options(arguments, known_only=True)
        show_traceback = options.traceback
        config = parse_config(rest)
        if not options.workdir and name not in WITHOUT_WORKDIR:
            raise ValueError(f"--workdir is missing: tljax {name} --config=FILE --workdir=DIR")
        processes.join(_group(options))
        with preemption.ending_at_once():
            result = TASKS[name][0](config, options.workdir)
    except processes.Preempted as error:
        return _fail(str(error), processes.REQUEUE)
    except (flags.Error, ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            traceback.print_exc()
        status = _fail(str(error))
        processes.leave(str(error), status)
        return status
    except JaxRuntimeError as error:
        if not processes.are_several():
            raise
        message = f"lost the other processes: {str(error).splitlines()[0]}; one of them has ended, see their logs"
        status = _fail(message)
        processes.leave(message, status)
        return status
    if processes.is_first():
        _show(result, options.workdir)
    return 0


def _show(result: dict[str, float], workdir: str | None) -> None:
    for key, value in sorted(result.items()):
        print(f"{key:<40} {value:.6g}")
    report = Path(workdir, "report.html") if workdir else None
    if report is not None and report.exists():
        print(f"report: {report}")


def _group(options: flags.FlagValues) -> Group | None:
    """Return the processes that the flags name; None where they name none."""
    names = ("coordinator", "num_processes", "process_id")
    given: dict[str, Any] = {name: options[name].value for name in names if options[name].value is not None}
    missing = [f"--{name}" for name in names if name not in given]
    if not given:
        return None
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing: the flags {', '.join(names)} go together")
    return Group(**given)


def _run_command(run: Callable[[list[str]], int], arguments: list[str], *, asks_for_help: bool) -> int:
    if asks_for_help:
        print(inspect.getdoc(run))
        return 0
    _log_to_stderr()
    try:
        return run(arguments)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return _fail(str(error))


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("jax", "orbax", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs tracebacks here, of errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _fail(message: str, status: int = processes.FAILED) -> int:
    print(f"tljax: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
