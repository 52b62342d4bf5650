"""Ways to damage a file of weights, each a function of random numbers and the content."""

import io
import json
import struct
import zipfile

import numpy as np


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage bytes anywhere, more often where headers are."""
    ways = (_cut, _flip, _flip, _overwrite, _overwrite, _delete, _repeat, _insert, _swap)
    for _ in range(rng.integers(1, 3)):
        if data:
            data = ways[rng.integers(len(ways))](rng, data)
    return data


def _place(rng: np.random.Generator, data: bytes) -> int:
    edge = min(len(data), 1500)
    return int([rng.integers(edge), len(data) - 1 - rng.integers(edge), rng.integers(len(data))][rng.integers(3)])


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _flip(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        changed[_place(rng, data)] ^= 1 << rng.integers(8)
    return bytes(changed)


def _overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    place, width = _place(rng, data), int(rng.choice([1, 2, 4, 8]))
    value = [b"\x00" * width, b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", rng.bytes(width)][rng.integers(4)]
    return data[:place] + value + data[place + width :]


def _delete(rng: np.random.Generator, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + data[place + rng.integers(1, 64) :]


def _repeat(rng: np.random.Generator, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[: place + rng.integers(1, 200)] + data[place:]


def _insert(rng: np.random.Generator, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + rng.bytes(int(rng.integers(1, 64))) + data[place:]


def _swap(rng: np.random.Generator, data: bytes) -> bytes:
    first, second = sorted((_place(rng, data), _place(rng, data)))
    width = min(16, second - first)
    other = data[second : second + width]
    return data[:first] + other + data[first + width : second] + data[first : first + width] + data[second + width :]


def damage_member(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage one file of an archive, and write the archive anew so that its checksums are right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w") as changed:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = pickles[0] if pickles and rng.integers(4) else names[rng.integers(len(names))]
        for name in names:
            content = archive.read(name)
            changed.writestr(name, damage(rng, content) if name == chosen else content)
    return made.getvalue()


def damage_header(rng: np.random.Generator, data: bytes) -> bytes:
    """Change what the header of a safetensors file says, and leave its form whole."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    keys = [key for key in header if key != "__metadata__"]
    key = keys[rng.integers(len(keys))]
    other = header[keys[rng.integers(len(keys))]]
    odd = [None, -1, 2**63, 2**200, 1.5, "F32", [], {}, True, [0, 2**62], [[1]], [1] * 70, [2**32, 2**32], [-4, 4]]
    field = ("dtype", "shape", "data_offsets")[rng.integers(3)]
    way = rng.integers(6)
    if way == 0:
        header[key][field] = odd[rng.integers(len(odd))]
    elif way == 1:
        header[key][field] = other[field]
    elif way == 2:
        header[key]["data_offsets"][rng.integers(2)] += int(rng.integers(-40, 40))
    elif way == 3:
        header[key]["dtype"] = str(rng.choice(["F64", "F16", "BF16", "I8", "F4", "f32"]))
    elif way == 4:
        header[key] = odd[rng.integers(len(odd))]
    else:
        del header[key]
    text = json.dumps(header).encode()
    if rng.integers(5) == 0:
        text = text[:-1] + b"," + text[1:]  # every key twice
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
