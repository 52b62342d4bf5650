"""Plain values (numbers, strings, lists, dicts, arrays): their JSON form, their hash, and how two of them differ."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


def to_json(value: Any) -> Any:
    """Return the JSON form of the numpy scalars and arrays and the paths that results are made of."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values as JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(value, default=to_json))


def fingerprint(value: Any) -> str:
    """Hash plain nested values (numbers, strings, lists, dicts, numpy arrays) to 32 hex digits.

    Mappings hash by content, not by order of insertion.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{")
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
        digest.update(b"}")
    elif isinstance(value, list | tuple):
        digest.update(b"[")
        for item in value:
            _feed(digest, item)
        digest.update(b"]")
    elif isinstance(value, np.ndarray | jax.Array):
        array = np.ascontiguousarray(value)
        digest.update(f"array {array.dtype} {array.shape};".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    elif value is None or isinstance(value, bool | int | float | str):
        text = f"{type(value).__name__} {value!r}"
        digest.update(f"{len(text)}:{text};".encode())
    else:
        raise TypeError(f"cannot fingerprint a {type(value).__name__}: {value!r}")


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the settings, by dotted name, that are not the same in two nested configs."""
    before, now = dict(flatten(saved)), dict(flatten(current))
    absent = "absent"
    return [
        f"{name}: {before.get(name, absent)!r} there, {now.get(name, absent)!r} now"
        for name in sorted({*before, *now})
        if before.get(name, absent) != now.get(name, absent)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a nested config with their dotted names; an empty section is a setting."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
