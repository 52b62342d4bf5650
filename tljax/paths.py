"""Operations on flat dicts keyed by path, such as `{"block_03/attn/query/kernel": Array}`."""

import difflib
import functools
import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def stage_of(path: str) -> str:
    """Return the stage that a param path begins with."""
    return path.split("/", 1)[0]


def match(rules: Sequence[tuple[str, Value]], paths: Iterable[str]) -> dict[str, Value]:
    """Give every path the value of the first rule whose regex matches the whole path.

    Args:
        rules: (regex, value) pairs, tried in order with `re.fullmatch`.
        paths: the paths to cover.

    Raises:
        ValueError: a rule is no regex; or a path matches no rule, a rule matches no path, or a rule comes after others
            that took all its paths, all such cases in one message.
    """
    _check_patterns([pattern for pattern, _ in rules])
    paths = list(paths)
    values: dict[str, Value] = {}
    won: set[int] = set()
    uncovered = []
    for path in paths:
        for index, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, path):
                values[path] = value
                won.add(index)
                break
        else:
            uncovered.append(path)
    problems = [f"no rule matches {path!r}" for path in uncovered]
    for index, (pattern, _) in enumerate(rules):
        if index in won:
            continue
        hits = [path for path in paths if re.fullmatch(pattern, path)]
        if hits:
            problems.append(f"rule {pattern!r} never wins: earlier rules took all its {len(hits)} paths; move it up")
        else:
            problems.append(f"rule {pattern!r} matches nothing{did_you_mean(pattern, paths)}")
    if problems:
        raise ValueError("rules and paths do not fit:\n  " + "\n  ".join(problems))
    return values


def partition(
    values: Mapping[str, Value], is_first: Callable[[str], bool]
) -> tuple[dict[str, Value], dict[str, Value]]:
    """Split a dict in two by a test on the path."""
    first = {path: value for path, value in values.items() if is_first(path)}
    second = {path: value for path, value in values.items() if path not in first}
    return first, second


def merge(first: Mapping[str, Value], second: Mapping[str, Value]) -> dict[str, Value]:
    """Join two dicts that share no path.

    Raises:
        ValueError: a path is in both.
    """
    both = sorted(set(first) & set(second))
    if both:
        raise ValueError(f"cannot merge: {len(both)} paths are in both dicts, the first is {both[0]!r}")
    return {**first, **second}


def diff(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """List every way in which the paths and shapes of `got` differ from those of `wanted`."""
    problems = []
    for path in sorted(set(wanted) - set(got)):
        problems.append(f"missing {path!r} {tuple(wanted[path].shape)}{did_you_mean(path, set(got) - set(wanted))}")
    for path in sorted(set(got) - set(wanted)):
        problems.append(f"not wanted {path!r} {tuple(got[path].shape)}{did_you_mean(path, set(wanted) - set(got))}")
    for path in sorted(set(got) & set(wanted)):
        if tuple(got[path].shape) != tuple(wanted[path].shape):
            problems.append(f"shape of {path!r} is {tuple(got[path].shape)}, wanted {tuple(wanted[path].shape)}")
    return problems


def rename(path: str, template: str, new: str) -> str | None:
    """Rename a path by a pair of templates, or return None where `template` does not match the whole path.

    A field with a number format in either template, `{layer:02d}`, stands for a number; `{layer+1}` for one that
    counts from 1 where ours counts from 0. Any other `{name}` stands for one word of letters, digits and
    underscores. So a pair of templates reads, and works, in both directions:

        >>> rename("encoder.layer.3.norm1.bias", "encoder.layer.{layer}.{norm}.bias", "block_{layer:02d}/{norm}/bias")
        'block_03/norm1/bias'
    """
    fields = parse(path, template, numbers(template, new))
    return None if fields is None else fill(new, fields)


def numbers(*templates: str) -> frozenset[str]:
    """Name the fields that stand for numbers: those with a number format, or a sum, in one of the templates."""
    fields = (field for template in templates for field in _fields(template))
    return frozenset(name for _, name, offset, spec in fields if name and (spec or offset))


def field_names(template: str) -> frozenset[str]:
    """Name the fields of a template."""
    return frozenset(name for _, name, _, _ in _fields(template) if name)


def parse(path: str, template: str, number_names: Collection[str]) -> dict[str, str | int] | None:
    """Read the fields of a template off a path; None where it does not match the whole path."""
    found = re.fullmatch(_template_regex(template, frozenset(number_names)), path)
    if found is None:
        return None
    offsets = {name: offset for _, name, offset, _ in _fields(template)}
    return {
        name: int(text) - offsets[name] if name in number_names else text for name, text in found.groupdict().items()
    }


def fill(template: str, fields: Mapping[str, str | int]) -> str:
    """Write the fields into a template."""
    text = ""
    for literal, name, offset, spec in _fields(template):
        text += literal
        if name:
            value = fields[name]
            text += format(value + offset if isinstance(value, int) else value, spec)
    return text


@functools.cache
def _fields(template: str) -> tuple[tuple[str, str, int, str], ...]:
    """Split a template into (literal, field name, offset, format)."""
    fields = []
    for literal, name, spec, _ in string.Formatter().parse(template):
        name, _, offset = (name or "").partition("+")
        fields.append((literal, name, int(offset or 0), spec or ""))
    return tuple(fields)


@functools.cache
def _template_regex(template: str, number_names: frozenset[str]) -> str:
    pattern = ""
    for literal, name, offset, spec in _fields(template):
        pattern += re.escape(literal)
        if name in number_names:
            # Exactly the digits that formatting would give, so that no two sources share one target.
            digits = r"\d{2}|[1-9]\d{2,}" if spec else r"0|[1-9]\d*"
            pattern += rf"(?!0+(?!\d))(?P<{name}>{digits})" if offset else rf"(?P<{name}>{digits})"
        elif name:
            pattern += rf"(?P<{name}>\w+)"
    return pattern


def matches_any(patterns: Iterable[str], path: str) -> bool:
    """Tell whether one of the regexes matches the whole path.

    Raises:
        ValueError: one is no regex.
    """
    patterns = list(patterns)
    _check_patterns(patterns)
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rule {pattern!r} is no regular expression: {error}") from error
