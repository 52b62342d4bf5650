"""Files of weights to dicts of numpy arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tljax.rundir import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read one safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds a dtype that numpy lacks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); download it again") from error


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read the safetensors of a Hugging Face model folder, in one file or in shards with an index.

    Raises:
        FileNotFoundError: the folder holds no weights, or a shard of its index is missing.
        ValueError: a file is damaged, or a shard lacks a key that the index promises.
    """
    if not (folder / _INDEX).is_file():
        if not (folder / _SINGLE).is_file():
            held = ", ".join(sorted(item.name for item in folder.iterdir())) or "nothing"
            raise FileNotFoundError(f"{folder} holds no {_SINGLE} and no {_INDEX}; it holds {held}")
        return read_safetensors(folder / _SINGLE)
    where: dict[str, str] = read_json(folder / _INDEX)["weight_map"]
    arrays: dict[str, np.ndarray] = {}
    for name in weight_files(folder):
        arrays |= read_safetensors(folder / name)
    lost = sorted(set(where) - set(arrays))
    if lost:
        raise ValueError(f"the shards of {folder} lack {len(lost)} keys of {_INDEX}, the first is {lost[0]!r}")
    return arrays


def weight_files(folder: Path) -> list[str]:
    """Name the files that hold the weights of a Hugging Face model folder, there or not: the shards of its index."""
    if not (folder / _INDEX).is_file():
        return [_SINGLE]
    return sorted(set(read_json(folder / _INDEX)["weight_map"].values()))


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX file that torch exported, under the names of the torch modules.

    torch keeps the names of most initialisers. The weights of linear layers become anonymous
    (`onnx::MatMul_1966`, stored [in out]); the node that reads them keeps the module's path
    (`/encoder/layer.0/mlp/fc1/MatMul`), which gives back `encoder.layer.0.mlp.fc1.weight`, as torch's
    [out in]. Any other anonymous array is named by its reader and position: `embeddings.Concat_6.0`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package onnx is not installed.
        ValueError: the file is damaged, or an anonymous array has no reader or a name twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise ImportError("reading ONNX files needs the package onnx: pip install 'tljax[onnx]'") from error
    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise ValueError(f"{path} cannot be read as ONNX ({error}); install or download it again") from error
    readers = _readers(graph)
    arrays: dict[str, np.ndarray] = {}
    for initialiser in graph.initializer:
        name, is_transposed = initialiser.name, False
        if name.startswith("onnx::"):
            if name not in readers:
                raise ValueError(f"{path}: nothing reads the anonymous array {name!r}")
            name, is_transposed = readers[name]
        if name in arrays:
            raise ValueError(f"{path}: two arrays are called {name!r}")
        array = numpy_helper.to_array(initialiser)
        arrays[name] = array.T if is_transposed else array
    return arrays


def _readers(graph: Any) -> dict[str, tuple[str, bool]]:
    """Name anonymous arrays by the first node that reads them; the flag says that torch keeps the transpose."""
    names: dict[str, tuple[str, bool]] = {}
    for node in graph.node:
        module = node.name.strip("/").replace("/", ".")
        for position, name in enumerate(node.input):
            if name in names:
                continue
            if node.op_type == "MatMul":
                names[name] = (f"{module.rpartition('.')[0]}.weight", True)
            else:
                names[name] = (f"{module}.{position}", False)
    return names
