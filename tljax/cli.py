"""Command line: `tljax TASK --config=FILE --workdir=DIR [--config.a.b=value]`."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

USAGE = """tljax: transfer learning for vision

  tljax TASK --config=FILE[:ARGUMENT] --workdir=DIR [--config.section.key=value ...]

Tasks:
{tasks}

Options:
  --config       file with get_config(); its fields are overridden with --config.section.key=value
  --workdir      where the run writes; a finished run returns its result, a half-finished one goes on
  --[no]traceback  show where in the code an error comes from (default: no)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task; return 0, or 2 after an error that the user can mend."""
    # transformers says at import that torch is missing, which here is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from tljax.paths import did_you_mean
    from tljax.tasks import TASKS

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        summaries = "\n".join(f"  {name:<14} {summary}" for name, (_, summary) in TASKS.items())
        print(USAGE.format(tasks=summaries))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in TASKS:
        return _fail(f"no task {name!r}{did_you_mean(name, TASKS)}; tasks are {', '.join(TASKS)}")
    _log_to_stderr()
    try:
        config, workdir, show_traceback = _parse(arguments)
    except Exception as error:
        # A config is a program, and can fail as any can.
        message = _config_message(error, arguments)
        if message is None or "--traceback" in arguments:
            raise
        return _fail(message)
    try:
        result = TASKS[name][0](config, workdir)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            raise
        return _fail(str(error))
    for key, value in sorted(result.items()):
        print(f"{key:<40} {value:.6g}")
    report = Path(workdir) / "report.html"
    if report.exists():
        print(f"report: {report}")
    return 0


def _parse(arguments: list[str]) -> tuple[Any, str, bool]:
    """Read the flags of one call.

    The flags live in an object of their own: absl's global one belongs to the program that imports this.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    flags.DEFINE_boolean("traceback", False, "Show tracebacks.", flag_values=values)
    rest = values(arguments)[1:]
    if rest:
        raise ValueError(f"not understood: {' '.join(rest)}; options are written --name=value")
    missing = [f"--{name}" for name in ("config", "workdir") if values[name].value is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing: tljax {arguments[0]} --config=FILE --workdir=DIR")
    return values.config.to_dict(), values.workdir, values.traceback


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("jax", "orbax", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs tracebacks here, of errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _config_message(error: Exception, arguments: Sequence[str]) -> str | None:
    """Say what is wrong with a call or with its config file; None for an error that is ours."""
    named = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    # A file may be followed by an argument.
    files = {os.path.abspath(name) for given in named for name in (given, given.rsplit(":", 1)[0])}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if os.path.abspath(frame.filename) in files:
            return f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {error}"
    # What ml_collections says of a name that the config lacks: a KeyError, inside an AttributeError or not.
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(inner, KeyError):
        return f"the config has no {inner.args[0]}"
    known = (flags.Error, AttributeError, ImportError, OSError, SyntaxError, ValueError)
    return str(error) if isinstance(error, known) else None


def _fail(message: str) -> int:
    print(f"tljax: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
