"""Command line: `tljax TASK --config=FILE --workdir=DIR [--config.a.b=value]`, and `tljax COMMAND ...`."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from tljax.arguments import make_flags, parse_config

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
  --[no]traceback  show where in the code an error comes from (default: no)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task; return 0, or 2 after an error that the user can mend."""
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
    options, show_traceback = make_flags(workdir=str, traceback=bool), False
    try:
        rest = options(arguments, known_only=True)
        show_traceback = options.traceback
        config = parse_config(rest)
        if not options.workdir and name not in WITHOUT_WORKDIR:
            raise ValueError(f"--workdir is missing: tljax {name} --config=FILE --workdir=DIR")
        result = TASKS[name][0](config, options.workdir)
    except (flags.Error, ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            raise
        return _fail(str(error))
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


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("jax", "orbax", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs tracebacks here, of errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _fail(message: str) -> int:
    print(f"tljax: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
