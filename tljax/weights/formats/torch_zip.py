"""torch.save since torch 1.6: an archive of one pickle and one member for each storage."""

import io
from typing import Any

from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.pickles import Machine
from tljax.weights.formats.torch_tensors import Storage, read_values
from tljax.weights.formats.torch_values import ALLOWED, storage
from tljax.weights.formats.weight_file import WeightFile
from tljax.weights.formats.zip_archive import Member
from tljax.weights.stored import Stored

PICKLE = "data.pkl"


def read(file: WeightFile, members: dict[str, Member]) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the tensors and plain values of an archive that has a member data.pkl.

    Raises:
        ValueError: the pickle is damaged or asks for more than tensors and plain values, a storage is missing or too
            small, or the bytes are of a big-endian machine.
    """
    name = next(name for name in members if name.endswith(PICKLE))
    folder = name.removesuffix(PICKLE)
    order = members.get(f"{folder}byteorder")
    if order is not None and order.head(8) != b"little":
        raise ValueError("it was written on a big-endian machine; save it again on another")
    values = _unpickle(file, members[name])

    def locate(held: Storage) -> Member:
        found = members.get(f"{folder}data/{held.key}")
        if found is None:
            raise ValueError(f"its storage {held.key!r} is not in the archive")
        return found

    return read_values(values, file, locate)


def _unpickle(file: WeightFile, member: Member) -> Any:
    machine = Machine(ALLOWED, storage)
    if member.is_deflated:
        if member.size > file.max_array_bytes // 4:
            raise ValueError(f"its pickle would unpack to {member.size:,} bytes; save it again with torch")
        data = io.BytesIO(member.read().data)
        return machine.read(Cursor(data, 0, member.size, file.max_items))
    member.check()
    with file.open() as stream:
        return machine.read(Cursor(stream, member.start, member.start + member.size, file.max_items))
