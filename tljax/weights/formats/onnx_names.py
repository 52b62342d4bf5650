"""The names that the arrays of an ONNX file had in the torch module it was exported from."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tljax.weights.stored import Stored

# Operations of layers, whose second input is the weight and whose third the bias.
LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Where the exporter of torch 2.5 and later notes the modules that a node is in.
SCOPES = "pkg.torch.onnx.name_scopes"

_IDENTITY = "Identity"
# Of the exporters before and since.
_ANONYMOUS = re.compile(r"onnx::.*|val_\d+")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation of the graph.

    Args:
        name, operation, inputs, outputs: as in the file.
        has_torch_weight: whether its weight is [out in], as torch keeps it; else it is [in out].
        scopes: names of the modules it is in, as text of a list, of the newer exporter.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    has_torch_weight: bool
    scopes: str

    @property
    def module(self) -> str:
        """Name the module that the operation is of, as in a state dict."""
        if self.scopes:
            names = re.findall(r"'([^']*)'", self.scopes)
            return names[-2] if len(names) > 1 else ""
        parts = self.name.strip("/").split("/")[:-1]
        # A module in a container is written after it, with its name once more: /blocks/blocks.0/attn.
        following = [*parts[1:], ""]
        return ".".join(part for part, after in zip(parts, following, strict=False) if not after.startswith(f"{part}."))


def name_arrays(arrays: Mapping[str, Stored], nodes: Sequence[Node]) -> dict[str, Stored]:
    """Bring arrays under the names of a state dict, and the weights of linear layers into torch's axes.

    torch keeps the names of most arrays. The weights of linear layers become anonymous (`onnx::MatMul_1966`, `val_12`),
    stored [in out]; the node that reads them tells the module, `encoder.layer.0.mlp.fc1`, which gives back
    `encoder.layer.0.mlp.fc1.weight`, as torch's [out in]. So do convolutions into which the exporter has folded a norm,
    whose own arrays are then gone. Any other anonymous array is named by its reader and position,
    `embeddings.Concat_6.0`; it is left out where it is a single number, a constant of the code. Equal arrays, which the
    exporter may keep once, are found through the nodes that stand for the others.

    Raises:
        ValueError: an anonymous array has no reader, or two arrays have one name.
    """
    readers: dict[str, tuple[Node, int]] = {}
    for node in nodes:
        for position, name in enumerate(node.inputs):
            readers.setdefault(name, (node, position))
    named: dict[str, Stored] = {}
    for name, array in arrays.items():
        if _ANONYMOUS.fullmatch(name):
            if name not in readers:
                raise ValueError(f"nothing reads the anonymous array {name!r}; export the model again")
            node, position = readers[name]
            is_layer = node.operation in LAYERS
            if not is_layer and math.prod(array.shape) == 1:
                continue
            name, array = _named(node, position, array)
        _add(named, name, array)
    for node in nodes:
        source = node.inputs[0] if node.inputs else ""
        if node.operation == _IDENTITY and source in arrays and node.outputs:
            _add(named, node.outputs[0], arrays[source])
    return named


def _add(named: dict[str, Stored], name: str, array: Stored) -> None:
    if name in named:
        raise ValueError(f"two arrays are called {name!r}")
    named[name] = array


def _named(node: Node, position: int, array: Stored) -> tuple[str, Stored]:
    module, operation = node.module, node.operation
    if operation not in LAYERS or not module or (operation == "MatMul" and len(array.shape) != 2):
        place = node.name.strip("/").replace("/", ".") if not node.scopes else f"{module}.{node.name}"
        return f"{place}.{position}", array
    if operation != "MatMul" and position == 2:
        return f"{module}.bias", array
    is_kept = operation.startswith("Conv") or node.has_torch_weight
    return f"{module}.weight", array if is_kept else _transposed(array)


def _transposed(array: Stored) -> Stored:
    def load() -> np.ndarray:
        return array.read().T  # i o -> o i

    return Stored(shape=array.shape[::-1], dtype=array.dtype, read=load)
