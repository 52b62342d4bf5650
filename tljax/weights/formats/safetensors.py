"""Hugging Face's safetensors: a header in JSON, then the arrays without gaps.

Source: the format's description in github.com/huggingface/safetensors.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tljax.weights.formats.weight_file import DAMAGED, DTYPES, WeightFile, byte_count
from tljax.weights.stored import Stored

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip

_LENGTH_BYTES = 8
# As objects, JSON takes about ten times its size. Published headers take 1/1000 of their file.
_MAX_SMALL_HEADER = 1 << 20
_HEADER_SHARE = 8


def read(file: WeightFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the arrays of a safetensors file, and its metadata as settings.

    Raises:
        ValueError: the header is damaged, has a key twice, an unknown dtype, or ranges with gaps or overlaps.
    """
    length = int.from_bytes(file.read(0, _LENGTH_BYTES).tobytes(), "little")
    if length > file.size - _LENGTH_BYTES:
        raise ValueError(f"its header of {length:,} bytes is longer than the file; {DAMAGED}")
    if length > _MAX_SMALL_HEADER + file.size // _HEADER_SHARE:
        raise ValueError(f"its header of {length:,} bytes is too long for {file.size:,} bytes of file; {DAMAGED}")
    header = _parse(file.read(_LENGTH_BYTES, length).tobytes())
    settings = header.pop("__metadata__", {})
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise ValueError(f"its __metadata__ is no dict of strings; {DAMAGED}")
    start = _LENGTH_BYTES + length
    arrays = {key: _stored(file, key, entry, start) for key, entry in header.items()}
    _check_cover(header, file.size - start)
    return arrays, settings


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is no JSON ({str(error)[:200]}); {DAMAGED}") from error
    if not isinstance(header, dict):
        raise ValueError(f"its header is no dict; {DAMAGED}")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict; of two equal keys the second would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice[:200]!r} is in its header twice")
    return found


def _stored(file: WeightFile, key: str, entry: Any, start: int) -> Stored:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {key!r} is not described by dtype, shape and data_offsets; {DAMAGED}")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"array {key!r} has dtype {str(name)[:200]!r}; known are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"array {key!r} has a shape or offsets that are no lists; {DAMAGED}")
    if len(offsets) != 2 or not all(type(offset) is int and 0 <= offset < 2**63 for offset in offsets):
        raise ValueError(f"array {key!r} has data_offsets that are no two sizes; {DAMAGED}")
    dtype, held = DTYPES[_DTYPES[name]], offsets[1] - offsets[0]
    count = byte_count(key, shape, dtype)
    if held != count:
        raise ValueError(
            f"array {key!r}: {name} {tuple(shape)} takes {count:,} bytes, data_offsets give it {held:,}; {DAMAGED}"
        )
    return file.stored(key, start + offsets[0], shape, dtype)


def _check_cover(header: Mapping[str, Any], size: int) -> None:
    """Refuse gaps and overlaps, as the format does."""
    end = 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin = entry["data_offsets"][0]
        if begin != end:
            raise ValueError(f"array {key!r} begins at byte {begin:,} of the data, not at {end:,}; {DAMAGED}")
        end = entry["data_offsets"][1]
    if end != size:
        raise ValueError(f"its arrays take {end:,} bytes, the file has {size:,}; {DAMAGED}")
