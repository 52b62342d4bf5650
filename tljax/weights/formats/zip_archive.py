"""Zip archives as byte ranges: what torch.save and np.savez write.

Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3. The module zipfile of Python reads more than these two write; what
it allocates does not depend on the size of the file.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np

from tljax.weights.formats.weight_file import DAMAGED, WeightFile, check_range, new_bytes

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ4xIIQQQQ")
_MAX_COMMENT = 2**16 - 1
_ENCRYPTED, _UTF_8 = 1, 1 << 11
_STORED, _DEFLATED = 0, 8
_EXTRA_64 = 1
_FULL_32 = 2**32 - 1
_CHUNK = 1 << 18
# One member takes the memory of so many small objects.
_ITEMS_PER_MEMBER = 5


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in an archive.

    Args:
        file: the archive.
        name: of the member.
        size: in bytes, unpacked.
        start, packed_size: where it lies in the archive.
        is_deflated: whether it is packed.
        checksum: CRC-32 of the unpacked bytes; 0 where the writer made none.
    """

    file: WeightFile
    name: str
    size: int
    start: int
    packed_size: int
    is_deflated: bool
    checksum: int

    def head(self, count: int) -> bytes:
        """Return the first bytes, at most `count`."""
        if not self.is_deflated:
            return self.file.read(self.start, min(count, self.size)).tobytes()
        packed = self.file.read(self.start, min(self.packed_size, count + 2**10)).tobytes()
        return self._unpack(zlib.decompressobj(-zlib.MAX_WBITS), packed, count)

    def read(self, offset: int = 0, count: int | None = None) -> np.ndarray:
        """Read a range of bytes, by default all; the checksum is compared where all are read.

        Raises:
            ValueError: the member does not hold it, unpacks to another size, or its checksum is another.
        """
        count = self.size - offset if count is None else count
        check_range(offset, count, self.size)
        is_whole = count == self.size
        if not self.is_deflated:
            data = self.file.read(self.start + offset, count)
        else:
            data, is_whole = self._inflate(), True
        if is_whole and self.checksum and zlib.crc32(data.data) != self.checksum:
            raise ValueError(f"the checksum of {self.name!r} in the archive is another; {DAMAGED}")
        return data[offset : offset + count] if self.is_deflated else data

    def check(self) -> None:
        """Compare the checksum of a member that is not packed, without holding it.

        Raises:
            ValueError: it is another.
        """
        checksum = 0
        for start in range(self.start, self.start + self.size, _CHUNK):
            count = min(_CHUNK, self.start + self.size - start)
            checksum = zlib.crc32(self.file.read(start, count).data, checksum)
        if self.checksum and checksum != self.checksum:
            raise ValueError(f"the checksum of {self.name!r} in the archive is another; {DAMAGED}")

    def _inflate(self) -> np.ndarray:
        data = new_bytes(self.size)
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        filled = 0
        for start in range(0, self.packed_size, _CHUNK):
            packed = self.file.read(self.start + start, min(_CHUNK, self.packed_size - start)).tobytes()
            while True:
                # One byte more than is left shows that there is more.
                room = min(_CHUNK, self.size - filled + 1)
                piece = self._unpack(machine, packed, room)
                if filled + len(piece) > self.size:
                    raise ValueError(
                        f"{self.name!r} in the archive unpacks to more than {self.size:,} bytes; {DAMAGED}"
                    )
                data[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
                packed = machine.unconsumed_tail
                if not packed and len(piece) < room:
                    break
        if filled != self.size or not machine.eof:
            raise ValueError(f"{self.name!r} in the archive unpacks to less than {self.size:,} bytes; {DAMAGED}")
        return data

    def _unpack(self, machine: "zlib._Decompress", packed: bytes, count: int) -> bytes:
        try:
            return machine.decompress(packed, count)
        except zlib.error as error:
            raise ValueError(f"{self.name!r} in the archive cannot be unpacked ({error}); {DAMAGED}") from error


def members(file: WeightFile) -> dict[str, Member]:
    """List the files in an archive.

    Raises:
        ValueError: its directory is damaged, or a member is encrypted, packed in another way than zip's usual one,
            present twice, or so well packed that it would unpack to more than `file.max_array_bytes`.
    """
    start, size, entries = _find_directory(file)
    directory = file.read(start, size).data
    found: dict[str, Member] = {}
    position = 0
    with file.open() as stream:
        for _ in range(entries):
            member, position = _member(file, stream, directory, position, start)
            if member.name in found:
                raise ValueError(f"two members of the archive are called {member.name!r}")
            found[member.name] = member
    if position != size:
        raise ValueError(f"the directory of the archive has {size:,} bytes, its entries take {position:,}; {DAMAGED}")
    return found


def _find_directory(file: WeightFile) -> tuple[int, int, int]:
    """Return where the directory begins, its size and its number of entries."""
    tail_start = max(0, file.size - _END.size - _MAX_COMMENT)
    tail = file.read(tail_start, file.size - tail_start).tobytes()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        raise ValueError(f"the directory at the end of the archive is missing; {DAMAGED}")
    _, disk, first_disk, _, entries, size, start, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment != len(tail) or disk or first_disk:
        raise ValueError(f"the end of the archive is damaged; {DAMAGED}")
    end = tail_start + place
    if tail[max(0, place - _LOCATOR.size) :].startswith(b"PK\x06\x07"):
        _, _, end, _ = _LOCATOR.unpack_from(tail, place - _LOCATOR.size)
        mark, _, _, _, _, entries, size, start = _END_64.unpack(file.read(end, _END_64.size).tobytes())
        if mark != b"PK\x06\x06":
            raise ValueError(f"the end of the archive is damaged; {DAMAGED}")
    if start + size != end:
        raise ValueError(f"the directory of the archive is not where its end says; {DAMAGED}")
    if entries > file.max_items // _ITEMS_PER_MEMBER:
        raise ValueError(f"the archive has {entries:,} members, too many for {file.size:,} bytes; {DAMAGED}")
    return start, size, entries


def _member(
    file: WeightFile, stream: BufferedIOBase, directory: memoryview, position: int, directory_start: int
) -> tuple[Member, int]:
    check_range(position, _ENTRY.size, len(directory))
    mark, flags, method, checksum, packed_size, size, name_length, extra_length, comment_length, offset = (
        _ENTRY.unpack_from(directory, position)
    )
    name_start = position + _ENTRY.size
    end = name_start + name_length + extra_length + comment_length
    check_range(position, end - position, len(directory))
    raw_name = bytes(directory[name_start : name_start + name_length])
    if mark != b"PK\x01\x02":
        raise ValueError(f"an entry in the directory of the archive is damaged; {DAMAGED}")
    name = raw_name.decode("utf-8" if flags & _UTF_8 else "cp437", errors="backslashreplace")
    extra = bytes(directory[name_start + name_length : end - comment_length])
    size, packed_size, offset = _large_values(extra, size, packed_size, offset)
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise ValueError(f"{name!r} in the archive is encrypted or packed by method {method}; pack it without")
    if method == _STORED and size != packed_size:
        raise ValueError(f"{name!r} in the archive has two sizes, {size:,} and {packed_size:,}; {DAMAGED}")
    if size > file.max_array_bytes:
        raise ValueError(
            f"{name!r} in the archive would unpack to {size:,} bytes, more than twice the file of {file.size:,}; "
            "save it again without compression"
        )
    start = _data_start(stream, offset, raw_name, directory_start)
    if start + packed_size > directory_start:
        raise ValueError(f"{name!r} in the archive should end at byte {start + packed_size:,}; {DAMAGED}")
    return Member(
        file=file, name=name, size=size, start=start, packed_size=packed_size, is_deflated=method == _DEFLATED,
        checksum=checksum,
    ), end  # fmt: skip


def _large_values(extra: bytes, *values: int) -> list[int]:
    """Replace values that do not fit into 32 bits by those that the entry has elsewhere."""
    found = list(values)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != _EXTRA_64:
            continue
        for index, value in enumerate(found):
            if value == _FULL_32 and len(content) >= 8:
                found[index], content = int.from_bytes(content[:8], "little"), content[8:]
    return found


def _data_start(stream: BufferedIOBase, offset: int, raw_name: bytes, stop: int) -> int:
    check_range(offset, _LOCAL.size + len(raw_name), stop)
    stream.seek(offset)
    mark, name_length, extra_length = _LOCAL.unpack(stream.read(_LOCAL.size))
    if mark != b"PK\x03\x04" or stream.read(name_length) != raw_name:
        raise ValueError(f"the archive has something else where {raw_name[:200]!r} should begin; {DAMAGED}")
    return offset + _LOCAL.size + name_length + extra_length
