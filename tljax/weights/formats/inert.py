"""What stands for the objects of a pickle: names, attributes and dicts that do nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tljax.weights.formats.weight_file import DAMAGED

_KEYS = (str, bytes, int, float, type(None))


@dataclass(frozen=True)
class Name:
    """A function, class or value that a pickle names, as text."""

    text: str


class Record(dict):
    """The attributes of an object, under their names."""

    state: Any = None


def fill(held: dict[Any, Any], pairs: Iterable[Any]) -> None:
    """Put pairs of key and value into a dict.

    Raises:
        ValueError: what should be a pair is none, a key is there already, or it is neither text nor number: the
            hash of nested values can overflow the stack of the interpreter.
    """
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], _KEYS):
            raise ValueError(f"its pickle has a dict with keys that are neither text nor number; {DAMAGED}")
        key, value = pair
        if key in held:
            raise ValueError(f"its pickle has the key {repr(key)[:200]} twice in one dict")
        held[key] = value
