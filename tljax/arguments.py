"""Arguments of the command line: flags, and the config that some of them name and change."""

import os
import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags


def make_flags(**kinds: type) -> flags.FlagValues:
    """Define flags, each None until it is given; one of kind `list` takes a string each time that it is given.

    They live in an object of their own: absl's global one belongs to the program that imports this. Called as
    `values(arguments)` it returns what is no flag, the name of the program first; as
    `values(arguments, known_only=True)` also the flags that are not defined here, which `parse_config` may know.
    """
    values = flags.FlagValues()
    define: dict[type, Any] = {
        bool: flags.DEFINE_boolean, float: flags.DEFINE_float, int: flags.DEFINE_integer, str: flags.DEFINE_string,
        list: flags.DEFINE_multi_string,
    }  # fmt: skip
    for name, kind in kinds.items():
        define[kind](name, None, "", flag_values=values)
    return values


def parse_config(arguments: Sequence[str]) -> dict[str, Any]:
    """Load the config file that `--config` names, and override its fields with `--config.section.key=value`.

    Args:
        arguments: the name of the task or command, then these flags and no others.

    Returns:
        Plain values.

    Raises:
        ValueError: there is no such file, something in it or in the arguments is wrong; it says what and where.
    """
    try:
        return _load(list(arguments))
    except Exception as error:
        # A config is a program, and fails in as many ways.
        raise ValueError(explain(error, arguments)) from error


def _load(arguments: list[str]) -> dict[str, Any]:
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


def change_config(config: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Override fields of a config with `--config.section.key=value`.

    Args:
        config: plain values.
        arguments: the name of the command, then these flags and no others.

    Raises:
        ValueError: the config has no such field, or none of such values.
    """
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", ml_collections.ConfigDict(config), "Config.", flag_values=values, sys_argv=list(arguments)
        )
        rest = values(list(arguments))[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(explain(error, arguments)) from error
    if rest:
        raise ValueError(f"not understood: {' '.join(rest)}; options are written --name=value")
    return values.config.to_dict()


def explain(error: BaseException, arguments: Sequence[str]) -> str:
    """Say what is wrong with a call, or where in the file that is named in it."""
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
