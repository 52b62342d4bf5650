"""torch.save before torch 1.6: five pickles, then the storages one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.pickles import Machine
from tljax.weights.formats.torch_tensors import Storage, read_values
from tljax.weights.formats.torch_values import ALLOWED, storage
from tljax.weights.formats.weight_file import DAMAGED, WeightFile, check_range
from tljax.weights.stored import Stored

# The first pickle, and the second. Source: torch/serialization.py.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class _Range:
    file: WeightFile
    start: int
    size: int

    def read(self, offset: int, count: int) -> np.ndarray:
        check_range(offset, count, self.size)
        return self.file.read(self.start + offset, count)


def read(file: WeightFile) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the tensors and plain values of a file.

    Raises:
        ValueError: a pickle is damaged or asks for more than tensors and plain values, a storage is missing or of
            another size, or the bytes are of a big-endian machine.
    """
    storages: dict[str, Storage] = {}

    def keep(value: Any) -> Storage:
        held = storage(value)
        storages[held.key] = held
        return held

    with file.open() as stream:
        cursor = Cursor(stream, 0, file.size, file.max_items)
        magic, protocol, system = (Machine({}, keep).read(cursor) for _ in range(3))
        if magic != MAGIC_NUMBER or protocol != _PROTOCOL or not isinstance(system, dict):
            raise ValueError(f"it does not begin as files of torch before 1.6 do; {DAMAGED}")
        if system.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine; save it again on another")
        values = Machine(ALLOWED, keep).read(cursor)
        keys = Machine({}, keep).read(cursor)
        ranges = dict(_ranges(file, cursor, keys, storages))

    def locate(held: Storage) -> _Range:
        if held.key not in ranges:
            raise ValueError(f"its storage {held.key!r} is not in the file; {DAMAGED}")
        return ranges[held.key]

    return read_values(values, file, locate)


def _ranges(file: WeightFile, cursor: Cursor, keys: Any, storages: dict[str, Storage]) -> Iterator[tuple[str, _Range]]:
    """Locate the storages: each is a number of elements, then these."""
    if not isinstance(keys, list):
        raise ValueError(f"it has no list of storages; {DAMAGED}")
    for key in keys:
        held = storages.get(key) if isinstance(key, str) else None
        if held is None:
            raise ValueError(f"it has a storage that its pickle does not use; {DAMAGED}")
        length = int.from_bytes(cursor.take(_LENGTH_BYTES), "little")
        if length != held.length:
            raise ValueError(f"its storage {key!r} has {length:,} elements, {held.length:,} were announced; {DAMAGED}")
        size = length * held.dtype.itemsize
        yield key, _Range(file=file, start=cursor.skip(size), size=size)
