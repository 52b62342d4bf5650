"""What the devices of a compiled step say to each other: read from the program, on as many devices as one likes."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# The names of HLO for what numpy knows by other names.
_DTYPES = {"pred": "bool", "bf16": ml_dtypes.bfloat16, "f16": "float16", "f32": "float32", "f64": "float64"}
_DTYPES |= {f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}

_INSTRUCTION = re.compile(rf" = (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<lengths>[\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[(?P<iota>\d+,\d+)\])")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One message of a program, in which the devices of a group take part.

    Args:
        kind: one of `KINDS`.
        num_bytes: of its result on one device.
        group_size: devices that take part together.
    """

    kind: str
    num_bytes: int
    group_size: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends if the devices stand in a ring, the least that any way of sending needs.

        Source:
            Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations.
        """
        others = self.group_size - 1
        if self.kind == "all-reduce":
            return 2 * others / self.group_size * self.num_bytes
        if self.kind == "reduce-scatter":
            return float(others * self.num_bytes)
        if self.kind == "collective-permute":
            return float(self.num_bytes)
        return others / self.group_size * self.num_bytes


def collectives(program: str, num_devices: int) -> list[Collective]:
    """List the messages of a compiled program; those in the body of a loop are listed once.

    Args:
        program: `lowered.compile().as_text()`.
        num_devices: that it was compiled for.
    """
    return list(_read(program, num_devices))


def _read(program: str, num_devices: int) -> Iterator[Collective]:
    for line in program.splitlines():
        found = _INSTRUCTION.search(line)
        if found is None:
            continue
        sizes = [_bytes(array) for array in _ARRAY.finditer(found["shape"])]
        if found["start"] and found["kind"] != "all-reduce":
            # An asynchronous one names what it reads before what it writes.
            sizes = sizes[len(sizes) // 2 :]
        group_size = _group_size(line, num_devices)
        if group_size > 1:
            yield Collective(kind=found["kind"], num_bytes=sum(sizes), group_size=group_size)


def _bytes(array: re.Match[str]) -> int:
    lengths = [int(length) for length in array["lengths"].split(",") if length]
    return math.prod(lengths) * np.dtype(_DTYPES[array["dtype"]]).itemsize


def _group_size(line: str, num_devices: int) -> int:
    found = _GROUPS.search(line)
    if found is None or "collective-permute" in line:
        return num_devices
    if found["iota"]:
        return int(found["iota"].split(",")[1])
    return len(found["first"].split(","))
