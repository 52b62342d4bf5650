"""Files and folders of weights as checkpoints, of which no array is read yet."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax.weights.formats import signature
from tljax.weights.formats.weight_file import DAMAGED, WeightFile, open_file
from tljax.weights.stored import Checkpoint, Stored

# What the projects call the weights in a folder of a model, in order of preference.
_NAMES = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
    "flax_model.msgpack", "flax_model.msgpack.index.json",
)  # fmt: skip
_INDEX_SUFFIX = ".index.json"
# What a file of weights under another name may end in; its format is told by its content.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".msgpack", ".onnx", ".h5", ".hdf5", ".keras")
_MAX_INDEX_BYTES = 1 << 26


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a file says of its arrays, and no array.

    Args:
        path: a file in any format of `tljax.weights.formats`, told by its content; an index of shards; or a folder
            that holds one model.

    Raises:
        FileNotFoundError: there is no such file, a shard is missing, or a folder holds no weights.
        ImportError: the format needs a package that is not installed.
        ValueError: the file is damaged or in no known format, asks for code to be run, or shards do not hold what
            their index says. So do the `read` of its arrays, which name file and key.
    """
    if path.is_dir():
        return read_checkpoint(path / _chosen(path))
    file = open_file(path)
    kind, read = signature.recognise(file)
    return _read_shards(file) if read is None else _read_file(file, kind, read)


def weight_files(folder: Path) -> list[str]:
    """Name the files that the weights of a folder are in, whether they are there or not: all shards of an index.

    Raises:
        ValueError: the index is damaged.
    """
    try:
        name = _chosen(folder)
    except FileNotFoundError:
        return [_NAMES[0]]
    if not name.endswith(_INDEX_SUFFIX):
        return [name]
    return sorted(set(_read_index(open_file(folder / name))[0].values()))


def _read_file(file: WeightFile, kind: str, read: signature.Reader) -> Checkpoint:
    path = file.path
    try:
        arrays, settings = read(file)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    named = {key: _naming_errors(path, key, array) for key, array in arrays.items()}
    return Checkpoint(path=path, format=kind, arrays=named, settings=settings)


def _chosen(folder: Path) -> str:
    for name in _NAMES:
        if (folder / name).is_file():
            return name
    held = sorted(item.name for item in folder.iterdir())
    others = [name for name in held if name.endswith(_SUFFIXES) and (folder / name).is_file()]
    if len(others) == 1:
        return others[0]
    found = (
        f"{len(others)} files that may be weights, give the path of one" if others else "nothing that may be weights"
    )
    listed = ", ".join(others or held)[:1000] or "no files"
    raise FileNotFoundError(f"{folder} has no {_NAMES[0]} nor another known name, and {found}: {listed}")


def _naming_errors(path: Path, key: str, array: Stored) -> Stored:
    def read() -> np.ndarray:
        try:
            return array.read()
        except ValueError as error:
            raise ValueError(f"{path}: array {key!r}: {error}") from error

    return dataclasses.replace(array, read=read)


def _read_shards(index: WeightFile) -> Checkpoint:
    """Read all shards of an index."""
    where, settings = _read_index(index)
    arrays: dict[str, Stored] = {}
    kinds = {}
    for name in sorted(set(where.values())):
        path = index.path.with_name(name)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}, which {index.path} lists; download it into the same folder")
        shard_file = open_file(path)
        kind, read = signature.recognise(shard_file)
        if read is None:
            raise ValueError(f"{path} is an index, and {index.path} lists it as a shard")
        shard = _read_file(shard_file, kind, read)
        kinds[shard.format] = path
        for key, array in shard.arrays.items():
            if key in arrays:
                raise ValueError(f"key {key!r} is in {path} and in another shard of {index.path}")
            if where.get(key, name) != name:
                raise ValueError(f"key {key!r} is in {path}, {index.path} says that it is in {where[key]}")
            arrays[key] = array
    lost = sorted(set(where) - set(arrays))
    if lost:
        raise ValueError(
            f"{index.path} lists {len(lost)} keys that its shards lack; {lost[0]!r} is not in {where[lost[0]]}"
        )
    if len(kinds) != 1:
        raise ValueError(f"{index.path} has shards in {len(kinds)} formats: {', '.join(map(str, kinds.values()))}")
    return Checkpoint(path=index.path, format=next(iter(kinds)), arrays=arrays, settings=settings)


def _read_index(file: WeightFile) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Return key to name of the shard, and what the index says beside."""
    if file.size > _MAX_INDEX_BYTES:
        raise ValueError(f"{file.path} is no index of shards: it has {file.size:,} bytes")
    try:
        content = json.loads(file.read(0, file.size).tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.path} cannot be read as JSON ({str(error)[:200]}); {DAMAGED}") from error
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{file.path} is JSON, and no index of shards: it has no 'weight_map'")
    for key, name in where.items():
        # A name only: the index must not choose what is read elsewhere.
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(
                f"{file.path}: key {key!r} is in {str(name)[:200]!r}, which is not a file beside the index"
            )
        if name == file.path.name:
            raise ValueError(f"{file.path}: key {key!r} is said to be in the index itself")
    settings = content.get("metadata", {})
    return where, settings if isinstance(settings, dict) else {}
