"""Flax's serialised pytrees: nested maps whose arrays are extensions of MessagePack.

Source: github.com/msgpack/msgpack, spec.md; flax/serialization.py for the extensions and the chunks of large arrays.
"""

import struct
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.nested import flatten
from tljax.weights.formats.weight_file import DAMAGED, DTYPES, WeightFile, byte_count, new_bytes
from tljax.weights.stored import Stored

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 64
# Things in the header of an array: three, and the lengths of its axes.
_MAX_HEADER = 100

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {code: struct.Struct(f">{letter}") for code, letter in zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True)}
# First byte to what follows: its kind, and of how many bytes the number is that counts it.
_COUNTED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip


@dataclass(frozen=True)
class _Bytes:
    start: int
    count: int


@dataclass(frozen=True)
class _Array:
    """Where the extension of an array lies; several and a shape where it was too large for one."""

    places: tuple[_Bytes, ...]
    shape: list[Any] | None = None


def read(file: WeightFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the arrays and plain values of a file, under keys joined with "/".

    Raises:
        ValueError: it is damaged, or holds anything else than maps, lists, arrays and plain values.
    """
    with file.open() as stream:

        def as_stored(key: str, leaf: Any) -> Stored | None:
            if not isinstance(leaf, _Array):
                return None
            try:
                return _stored(file, key, leaf, stream)
            except ValueError as error:
                raise ValueError(f"array {key!r}: {error}") from error

        cursor = Cursor(stream, 0, file.size, file.max_items)
        tree = _value(cursor, 0)
        if cursor.position != file.size:
            raise ValueError(f"it ends at byte {cursor.position:,}, the file has {file.size:,}; {DAMAGED}")
        return flatten(tree, "/", file, as_stored)


def _stored(file: WeightFile, key: str, array: _Array, stream: BufferedIOBase) -> Stored:
    headers = [_header(Cursor(stream, place.start, place.start + place.count, _MAX_HEADER)) for place in array.places]
    shape, dtype, _ = headers[0]
    shape = shape if array.shape is None else array.shape
    pieces = [data for _, _, data in headers]
    count, held = byte_count(key, shape, dtype), sum(piece.count for piece in pieces)
    if count != held or any(other != dtype for _, other, _ in headers):
        raise ValueError(f"{dtype} {tuple(shape)} takes {count:,} bytes, it has {held:,}; {DAMAGED}")
    if len(pieces) == 1:
        return file.stored(key, pieces[0].start, shape, dtype)

    def load() -> np.ndarray:
        whole = new_bytes(count)
        filled = 0
        for piece in pieces:
            whole[filled : filled + piece.count] = file.read(piece.start, piece.count)
            filled += piece.count
        return whole.view(dtype).reshape(shape)

    return Stored(shape=tuple(shape), dtype=dtype, read=load)


def _header(cursor: Cursor) -> tuple[list[Any], np.dtype, _Bytes]:
    content = _value(cursor, 0)
    if cursor.position != cursor.stop or not isinstance(content, list) or len(content) != 3:
        raise ValueError(f"its header is not as flax writes it; {DAMAGED}")
    shape, name, data = content
    if not isinstance(shape, list) or not isinstance(name, str) or not isinstance(data, _Bytes):
        raise ValueError(f"its header is not as flax writes it; {DAMAGED}")
    if name not in DTYPES:
        raise ValueError(f"it has dtype {name[:50]!r}; known are {', '.join(DTYPES)}")
    return shape, DTYPES[name], data


def _value(cursor: Cursor, depth: int) -> Any:
    cursor.count()
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels; {DAMAGED}")
    code = cursor.take(1)[0]
    if code in _CONSTANTS:
        return _CONSTANTS[code]
    if code in _NUMBERS:
        return _NUMBERS[code].unpack(cursor.take(_NUMBERS[code].size))[0]
    if code < 0x80 or code >= 0xE0:
        return code if code < 0x80 else code - 0x100
    kind, count = _counted(cursor, code)
    if kind == "map":
        return _map(cursor, count, depth)
    if kind == "list":
        return [_value(cursor, depth + 1) for _ in range(count)]
    if kind == "text":
        return _text(cursor, count)
    if kind == "bytes":
        return _Bytes(cursor.skip(count), count)
    return _extension(cursor, count)


def _counted(cursor: Cursor, code: int) -> tuple[str, int]:
    if code < 0x90:
        return "map", code - 0x80
    if code < 0xA0:
        return "list", code - 0x90
    if code < 0xC0:
        return "text", code - 0xA0
    if 0xD4 <= code <= 0xD8:
        return "extension", 1 << (code - 0xD4)
    if code not in _COUNTED:
        raise ValueError(f"byte {cursor.position - 1:,} begins nothing known; {DAMAGED}")
    kind, width = _COUNTED[code]
    return kind, int.from_bytes(cursor.take(width), "big")


def _text(cursor: Cursor, count: int) -> str:
    cursor.count(characters=count)
    try:
        return cursor.take(count).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the text before byte {cursor.position:,} is no UTF-8; {DAMAGED}") from error


def _map(cursor: Cursor, count: int, depth: int) -> Any:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = _value(cursor, depth + 1)
        if not isinstance(key, str):
            raise ValueError(f"the key before byte {cursor.position:,} is no text; {DAMAGED}")
        if key in found:
            raise ValueError(f"key {key[:200]!r} is there twice")
        found[key] = _value(cursor, depth + 1)
    return _join(found) if _CHUNKED in found else found


def _join(chunked: dict[str, Any]) -> _Array:
    """Return the array that flax has cut into chunks because MessagePack counts in 32 bits."""
    shape, chunks = _in_order(chunked.get("shape")), _in_order(chunked.get("chunks"))
    if not chunks or not all(isinstance(chunk, _Array) for chunk in chunks):
        raise ValueError(f"the chunks of an array are no arrays; {DAMAGED}")
    return _Array(tuple(place for chunk in chunks for place in chunk.places), shape)


def _in_order(indexed: Any) -> list[Any]:
    if not isinstance(indexed, dict) or set(indexed) != {str(index) for index in range(len(indexed))}:
        raise ValueError(f"the shape or the chunks of an array are not numbered; {DAMAGED}")
    return [indexed[str(index)] for index in range(len(indexed))]


def _extension(cursor: Cursor, count: int) -> _Array | _Bytes:
    kind = cursor.take(1)[0]
    if kind not in (_ARRAY, _COMPLEX, _SCALAR):
        raise ValueError(f"the extension {kind} at byte {cursor.position:,} is none of flax's; {DAMAGED}")
    place = _Bytes(cursor.skip(count), count)
    return place if kind == _COMPLEX else _Array((place,))
