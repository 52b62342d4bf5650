"""The wire format of protocol buffers, as far as ONNX files need it.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.weight_file import DAMAGED

# Kinds of fields.
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

# A field: its number, and its value or where its bytes are.
Field = tuple[int, int | tuple[int, int]]


def fields(cursor: Cursor, start: int, stop: int) -> Iterator[Field]:
    """Go through the fields of the message between two places; the cursor may be moved meanwhile.

    Raises:
        ValueError: it is damaged.
    """
    position = start
    while position < stop:
        cursor.move(position)
        cursor.count()
        tag = varint(cursor)
        number, kind = tag >> 3, tag & 7
        if not number or kind not in (_VARINT, _FIXED_64, _BYTES, _FIXED_32):
            raise ValueError(f"byte {position:,} begins no field of a message; {DAMAGED}")
        if kind == _VARINT:
            value: int | tuple[int, int] = varint(cursor)
        else:
            count = varint(cursor) if kind == _BYTES else 8 if kind == _FIXED_64 else 4
            begin = cursor.skip(count)
            value = (begin, begin + count)
        position = cursor.position
        if position > stop:
            raise ValueError(f"the field that ends at byte {position:,} is longer than its message; {DAMAGED}")
        yield number, value


def varint(cursor: Cursor) -> int:
    """Read a number of as many bytes as it needs.

    Raises:
        ValueError: it does not end.
    """
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = cursor.take(1)[0]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value
    raise ValueError(f"the number before byte {cursor.position:,} does not end; {DAMAGED}")
