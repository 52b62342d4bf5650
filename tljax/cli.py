"""Command line: `tljax TASK --config=FILE --workdir=DIR [--config.a.b=value]`, and `tljax COMMAND ...`."""

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from absl import flags
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

from tljax import preemption, processes

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
    from tljax.tasks import TASKS, WITHOUT_WORKDIR

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
    _log_to_stderr()
    show_traceback = False
    try:
        options, rest = _parse_options(arguments)
        show_traceback = options.traceback
        config = _parse_config(rest)
        if not options.workdir and name not in WITHOUT_WORKDIR:
            raise ValueError(f"--workdir is missing: tljax {name} --config=FILE --workdir=DIR")
        processes.join(_group(options))
    except Exception as error:
        # A config is a program, and fails in as many ways.
        if show_traceback:
            raise
        return _fail(_explain(error, arguments))
    try:
        with preemption.ending_at_once():
            result = TASKS[name][0](config, options.workdir)
    except processes.Preempted as error:
        return _fail(str(error), processes.REQUEUE)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        processes.leave(str(error), processes.FAILED)
        if show_traceback:
            raise
        return _fail(str(error))
    except JaxRuntimeError as error:
        if not processes.are_several():
            raise
        message = f"lost the other processes: {str(error).splitlines()[0]}; one of them has ended, see their logs"
        _fail(message)
        processes.leave(message, processes.FAILED)
    for key, value in sorted(result.items()):
        print(f"{key:<40} {value:.6g}")
    report = Path(options.workdir, "report.html") if options.workdir else None
    if report is not None and report.exists():
        print(f"report: {report}")
    return 0


def _run_command(run: Callable[[list[str]], int], arguments: list[str], *, asks_for_help: bool) -> int:
    if asks_for_help:
        print(inspect.getdoc(run))
        return 0
    _log_to_stderr()
    try:
        return run(arguments)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return _fail(str(error))


def _parse_options(arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Read the flags that are not of the config; return them and the other arguments.

    The flags live in objects of their own: absl's global one belongs to the program that imports this.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "Address of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is.", flag_values=values)
    flags.DEFINE_boolean("traceback", False, "Show tracebacks.", flag_values=values)
    return values, values(arguments, known_only=True)


def _parse_config(arguments: list[str]) -> dict[str, Any]:
    """Load the config file and override its fields."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values, sys_argv=arguments)
    rest = values(arguments)[1:]
    if rest:
        raise ValueError(f"not understood: {' '.join(rest)}; options are written --name=value")
    if not values["config"].present:
        raise ValueError(f"--config is missing: tljax {arguments[0]} --config=FILE --workdir=DIR")
    to_dict = getattr(values.config, "to_dict", None)
    if to_dict is None:
        raise ValueError(f"get_config() returns a {type(values.config).__name__}, wanted an ml_collections.ConfigDict")
    return to_dict()


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("jax", "orbax", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs tracebacks here, of errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _explain(error: BaseException, arguments: Sequence[str]) -> str:
    """Say what is wrong with a call, or where in its config file."""
    values = [following if flag.strip("-") == "config" else flag for flag, following in pairwise([*arguments, ""])]
    named = [value.partition("config=")[2] or value for value in values]
    # A file may be followed by an argument.
    files = {os.path.abspath(name) for given in named for name in (given, given.rsplit(":", 1)[0])}
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if os.path.abspath(frame.filename) in files:
                return f"{frame.filename}, line {frame.lineno}: {type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    # What ml_collections says of a name that the config lacks: a KeyError, inside an AttributeError or not.
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(inner, KeyError):
        return f"the config has no {inner.args[0]}"
    known = (flags.Error, AttributeError, ImportError, OSError, SyntaxError, ValueError)
    return str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}"


def _group(options: flags.FlagValues) -> processes.Group | None:
    """Return the processes that the flags name; None where they name none."""
    names = ("coordinator", "num_processes", "process_id")
    given = {name: options[name].value for name in names if options[name].value is not None}
    missing = [f"--{name}" for name in names if name not in given]
    if not given:
        return None
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: --coordinator, --num_processes and --process_id go together"
        )
    return processes.Group(**given)


def _fail(message: str, status: int = processes.FAILED) -> int:
    print(f"tljax: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
