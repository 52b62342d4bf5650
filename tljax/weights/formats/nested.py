"""Nested dicts of arrays as flat ones."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tljax.weights.formats.weight_file import DAMAGED, WeightFile
from tljax.weights.stored import Stored

# Published files have less than ten.
_MAX_DEPTH = 64
_FREE_KEY_CHARACTERS = 1 << 20

_PLAIN = (str, int, float, type(None))


def flatten(
    tree: Any, separator: str, file: WeightFile, as_stored: Callable[[str, Any], Stored | None]
) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the arrays and the plain values of nested dicts and lists under joined keys.

    Args:
        tree: dicts, lists and tuples; what is neither, nor a plain value, nor an array is left out.
        separator: between keys, and before the indices of lists.
        file: that it is from, whose size bounds what it can be.
        as_stored: turns key and leaf into an array; None where the leaf is none.

    Raises:
        ValueError: it is no dict, two arrays have one key, or it is too deep or too large for its file.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds a {type(tree).__name__}, not a dict of arrays")
    arrays: dict[str, Stored] = {}
    settings: dict[str, Any] = {}
    characters = _FREE_KEY_CHARACTERS + file.size
    for key, leaf in _leaves(tree, "", separator, 0, iter(range(file.max_items))):
        characters -= len(key)
        if characters < 0:
            raise ValueError(f"its keys are longer than the file; {DAMAGED}")
        array = as_stored(key, leaf)
        if array is None:
            if isinstance(leaf, _PLAIN):
                settings[key] = leaf
            continue
        if key in arrays:
            raise ValueError(f"two arrays are called {key!r}")
        arrays[key] = array
    return arrays, settings


def _leaves(tree: Any, prefix: str, separator: str, depth: int, counts: Iterator[int]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        key = f"{prefix}{name}"
        # Counted on the way: a few bytes can put a container into many others, or into itself.
        if next(counts, None) is None or depth > _MAX_DEPTH:
            raise ValueError(f"it is nested too deep or too often to be a file of weights, at {key[:200]!r}")
        if isinstance(value, Mapping | list | tuple):
            yield from _leaves(value, f"{key}{separator}", separator, depth + 1, counts)
        else:
            yield key, value
