"""numpy's archives of arrays: what AugReg, BiT and big_vision publish.

Source: the description of the format NPY in numpy's module numpy.lib.format.
"""

import re
from typing import Any

import ml_dtypes
import numpy as np

from tljax.weights.formats.weight_file import DAMAGED, WeightFile, byte_count
from tljax.weights.formats.zip_archive import Member
from tljax.weights.stored import Stored

SUFFIX = ".npy"

_MAGIC = b"\x93NUMPY"
# Of a plain array it has 128 bytes.
_MAX_HEADER = 10_000
# The header is a literal of Python; read as text it cannot surprise, and what numpy writes always matches.
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[^']*)', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(\d{1,19}L?, ?)*(\d{1,19}L?)?)\),? *\} *\n"
)
_PLAIN = re.compile(r"[<>|=]?([fiu][1248]|b1|c8|c16)")


def read(file: WeightFile, members: dict[str, Member]) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the arrays of an archive whose members are all arrays; their names keep "/" and lose ".npy".

    Raises:
        ValueError: a header is damaged, its size does not fit its member, or it is of Python objects.
    """
    arrays = {}
    for name, member in members.items():
        key = name.removesuffix(SUFFIX)
        try:
            arrays[key] = _stored(member)
        except ValueError as error:
            raise ValueError(f"array {key!r}: {error}") from error
    return arrays, {}


def _stored(member: Member) -> Stored:
    start, text = _header(member)
    match = _HEADER.fullmatch(text)
    if match is None:
        raise ValueError(f"its header is not that of an array of numbers, {text[:100]!r}; {DAMAGED}")
    dtype = _dtype(match["descr"].decode("ascii", errors="replace"))
    shape = tuple(int(length.rstrip(b"L")) for length in re.findall(rb"\d+L?", match["shape"]))
    count = byte_count(member.name, shape, dtype)
    if start + count != member.size:
        raise ValueError(f"{dtype} {shape} takes {count:,} bytes, its member has {member.size - start:,}; {DAMAGED}")
    order = "F" if match["order"] == b"True" else "C"

    def load() -> np.ndarray:
        # All of it, header too, so that the checksum is compared.
        array = member.read()[start:].view(dtype).reshape(shape, order=order)
        return array.astype(dtype.newbyteorder("="), copy=False)

    return Stored(shape=shape, dtype=dtype.newbyteorder("="), read=load)


def _header(member: Member) -> tuple[int, bytes]:
    """Return where the array begins in its member, and the text before it."""
    head = member.head(12)
    if not head.startswith(_MAGIC) or len(head) < 12:
        raise ValueError(f"its member does not begin as arrays do; {DAMAGED}")
    length_bytes = {1: 2, 2: 4, 3: 4}.get(head[6])
    if length_bytes is None:
        raise ValueError(f"its header has version {head[6]}; known are 1 to 3; {DAMAGED}")
    length = int.from_bytes(head[8 : 8 + length_bytes], "little")
    if length > _MAX_HEADER:
        raise ValueError(
            f"its header is said to have {length:,} bytes, at most {_MAX_HEADER:,} are possible; {DAMAGED}"
        )
    start = 8 + length_bytes + length
    return start, member.head(start)[8 + length_bytes :]


def _dtype(text: str) -> np.dtype:
    # numpy has no bfloat16 and writes it as two bytes without a meaning; nothing else has two.
    if text in ("|V2", "<V2"):
        return np.dtype(ml_dtypes.bfloat16)
    if "O" in text:
        raise ValueError("it holds Python objects, which are not read; save arrays of numbers only")
    if _PLAIN.fullmatch(text) is None or text.endswith("f1"):
        raise ValueError(f"its dtype {text!r} is not known; save it as float32")
    return np.dtype(text)
