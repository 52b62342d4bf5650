"""ONNX files that torch exported, read without the package onnx.

Source: github.com/onnx/onnx, onnx/onnx.proto, for the numbers of fields and dtypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from tljax.weights.formats import onnx_names, protobuf
from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.onnx_names import Node
from tljax.weights.formats.weight_file import DAMAGED, DTYPES, WeightFile, open_file
from tljax.weights.stored import Stored

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_ARRAY = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATION, _NODE_ATTRIBUTE, _NODE_METADATA = 1, 2, 3, 4, 5, 9
_ATTRIBUTE_INTEGER = 3
_ARRAY_SHAPE, _ARRAY_DTYPE, _ARRAY_NAME, _ARRAY_EXTERNAL = 1, 2, 8, 13
# Little-endian bytes, and fields that are the same.
_ARRAY_BYTES = {"raw_data": 9, "float_data": 4, "double_data": 10}
_KEY, _VALUE = 1, 2
# Whole numbers are not here: they are shapes and indices of the exporter's own, no params.
_DTYPES = {
    1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", 17: "float8_e4m3fn", 19: "float8_e5m2",
}  # fmt: skip

_Range = tuple[int, int]


@dataclass(kw_only=True)
class _Message:
    """The fields of a message: numbers, and the places of all else."""

    numbers: dict[int, list[int]] = field(default_factory=dict)
    places: dict[int, list[_Range]] = field(default_factory=dict)


def read(file: WeightFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the weights of an ONNX file under the names of the torch modules; see `onnx_names.name_arrays`.

    Arrays of whole numbers are left out.

    Raises:
        FileNotFoundError: the file keeps its arrays in another, which is not beside it.
        ValueError: it is damaged, an array has a dtype or a place that is not known, or a name twice.
    """
    with file.open() as stream:
        cursor = Cursor(stream, 0, file.size, file.max_items)
        graphs = _message(cursor, (0, file.size)).places.get(_MODEL_GRAPH, [])
        if len(graphs) != 1:
            raise ValueError(f"it has {len(graphs)} graphs, not one; {DAMAGED}")
        nodes: list[Node] = []
        arrays: dict[str, Stored] = {}
        for number, place in _parts(cursor, graphs[0]):
            if number == _GRAPH_NODE:
                nodes.append(_node(cursor, place))
            elif number == _GRAPH_ARRAY:
                _add_array(arrays, cursor, place, file)
    return onnx_names.name_arrays(arrays, nodes), {}


def _parts(cursor: Cursor, place: _Range) -> Iterator[tuple[int, _Range]]:
    for number, value in protobuf.fields(cursor, *place):
        if isinstance(value, tuple):
            yield number, value


def _message(cursor: Cursor, place: _Range) -> _Message:
    message = _Message()
    for number, value in protobuf.fields(cursor, *place):
        if isinstance(value, tuple):
            message.places.setdefault(number, []).append(value)
        else:
            message.numbers.setdefault(number, []).append(value)
    return message


def _text(cursor: Cursor, place: _Range) -> str:
    cursor.move(place[0])
    cursor.count(characters=place[1] - place[0])
    return cursor.take(place[1] - place[0]).decode(errors="backslashreplace")


def _texts(cursor: Cursor, message: _Message, number: int) -> tuple[str, ...]:
    return tuple(_text(cursor, place) for place in message.places.get(number, ()))


def _node(cursor: Cursor, place: _Range) -> Node:
    message = _message(cursor, place)
    operation = "".join(_texts(cursor, message, _NODE_OPERATION))
    attributes: dict[str, int] = {}
    scopes = ""
    if operation in onnx_names.LAYERS:
        attributes = dict(_attributes(cursor, message))
        scopes = dict(_entries(cursor, message, _NODE_METADATA)).get(onnx_names.SCOPES, "")
    return Node(
        name="".join(_texts(cursor, message, _NODE_NAME)),
        operation=operation,
        inputs=_texts(cursor, message, _NODE_INPUT),
        outputs=_texts(cursor, message, _NODE_OUTPUT),
        has_torch_weight=bool(attributes.get("transB", 0)),
        scopes=scopes,
    )


def _attributes(cursor: Cursor, node: _Message) -> Iterator[tuple[str, int]]:
    for place in node.places.get(_NODE_ATTRIBUTE, ()):
        attribute = _message(cursor, place)
        for integer in attribute.numbers.get(_ATTRIBUTE_INTEGER, ())[:1]:
            yield "".join(_texts(cursor, attribute, _KEY)), integer


def _entries(cursor: Cursor, message: _Message, number: int) -> Iterator[tuple[str, str]]:
    for place in message.places.get(number, ()):
        entry = _message(cursor, place)
        yield "".join(_texts(cursor, entry, _KEY)), "".join(_texts(cursor, entry, _VALUE))


def _add_array(arrays: dict[str, Stored], cursor: Cursor, place: _Range, file: WeightFile) -> None:
    message = _message(cursor, place)
    name = "".join(_texts(cursor, message, _ARRAY_NAME))
    code = message.numbers.get(_ARRAY_DTYPE, [0])[0]
    if code not in _DTYPES:
        return
    if name in arrays:
        raise ValueError(f"two arrays are called {name!r}")
    dtype = DTYPES[_DTYPES[code]]
    shape = tuple(_shape(cursor, message))
    external = dict(_entries(cursor, message, _ARRAY_EXTERNAL))
    if external:
        arrays[name] = _external(file, name, shape, dtype, external)
        return
    data = [piece for number in _ARRAY_BYTES.values() for piece in message.places.get(number, ())]
    if len(data) > 1 or (not data and 0 not in shape):
        raise ValueError(
            f"array {name!r} has its numbers in none of {', '.join(_ARRAY_BYTES)}, or in pieces; write it again with "
            "the package onnx, through onnx.numpy_helper.from_array"
        )
    start, stop = data[0] if data else (0, 0)
    arrays[name] = _checked(file, name, start, stop - start, shape, dtype)


def _shape(cursor: Cursor, message: _Message) -> Iterator[int]:
    yield from message.numbers.get(_ARRAY_SHAPE, ())
    for start, stop in message.places.get(_ARRAY_SHAPE, ()):
        cursor.move(start)
        while cursor.position < stop:
            cursor.count()
            yield protobuf.varint(cursor)


def _external(file: WeightFile, name: str, shape: tuple[int, ...], dtype: np.dtype, entries: dict[str, str]) -> Stored:
    location = entries.get("location", "")
    # A name only: the file must not choose what is read elsewhere.
    if not location or PurePath(location).name != location or "\\" in location or location == "..":
        raise ValueError(f"array {name!r} lies in {location[:200]!r}, which is not a file beside it")
    path = file.path.with_name(location)
    if not path.is_file():
        raise FileNotFoundError(f"{file.path} keeps its arrays in {path}, which is not there; put it beside it")
    other = open_file(path)
    numbers = [entries.get("offset", "0"), entries.get("length", str(other.size))]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise ValueError(f"array {name!r} has no place in {location!r}; {DAMAGED}")
    return _checked(other, name, int(numbers[0]), int(numbers[1]), shape, dtype)


def _checked(file: WeightFile, name: str, start: int, count: int, shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    array = file.stored(name, start, shape, dtype)
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if wanted != count:
        raise ValueError(f"array {name!r}: {dtype} {shape} takes {wanted:,} bytes, it has {count:,}; {DAMAGED}")
    return array
