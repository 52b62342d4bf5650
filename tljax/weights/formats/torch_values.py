"""What torch's pickles may name, and what stands for it: the place of a tensor, or a plain value.

Source: the functions of the same names in torch/_utils.py; torch/serialization.py for what a storage is.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tljax.weights.formats.inert import Name, Record, fill
from tljax.weights.formats.torch_tensors import Storage, Tensor
from tljax.weights.formats.weight_file import DAMAGED, DTYPES

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
_UNTYPED = "torch.storage UntypedStorage"
_STORAGE_DTYPES = {
    **{f"{module} {name}Storage": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()},
    _UNTYPED: "uint8",
}
_SCALARS = re.compile("[iu][1248]|f[248]|b1")


def storage(value: Any) -> Storage:
    """Return the storage that a persistent id of torch.save stands for.

    Raises:
        ValueError: it is of a module's source code, or no storage.
    """
    if isinstance(value, tuple) and value and value[0] == "module":
        raise ValueError("it holds a whole module, not its params; save `module.state_dict()` with torch")
    is_storage = isinstance(value, tuple) and len(value) in (5, 6) and value[0] == "storage"
    if not is_storage or not isinstance(value[1], Name) or value[1].text not in _STORAGE_DTYPES:
        raise ValueError(f"its pickle refers to something stored that is no storage of numbers; {DAMAGED}")
    _, kind, key, _, length, *view = value
    offset = view[0][1] if view and isinstance(view[0], tuple) and len(view[0]) == 3 else 0
    if not isinstance(key, str) or not _are_sizes((length, offset)):
        raise ValueError(f"its pickle refers to a storage without a name and a size; {DAMAGED}")
    return Storage(key=key, dtype=DTYPES[_STORAGE_DTYPES[kind.text]], length=length, offset=offset)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _tensor(held: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    # requires_grad and hooks are of no use here; what follows them changes the numbers.
    if any(rest[2:]):
        raise ValueError("a tensor is marked as conjugate or negative; save it again after .resolve_conj()")
    return _tensor_of(held, offset, shape, strides, None)


def _tensor_with_dtype(
    held: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    del requires_grad, hooks, rest
    return _tensor_of(held, offset, shape, strides, dtype)


def _tensor_of(held: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> Tensor:
    name = dtype.text.removeprefix("torch ") if isinstance(dtype, Name) else None
    is_view = _are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(strides) and len(shape) == len(strides)
    if not isinstance(held, Storage) or not is_view or (dtype is not None and name not in DTYPES):
        raise ValueError(f"its pickle builds a tensor of something that is no storage, shape and strides; {DAMAGED}")
    return Tensor(
        storage=held, dtype=held.dtype if name is None else DTYPES[name], offset=offset, shape=tuple(shape),
        strides=tuple(strides),
    )  # fmt: skip


def _parameter(data: Any, *rest: Any) -> Tensor:
    del rest
    if not isinstance(data, Tensor):
        raise ValueError(f"its pickle makes a parameter of something that is no tensor; {DAMAGED}")
    return data


def _tensor_of_class(function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    del rest
    make = _TENSORS.get(function.text) if isinstance(function, Name) else None
    if make is None or not isinstance(kind, Name) or kind.text not in _CLASSES or not isinstance(arguments, tuple):
        raise ValueError("its pickle holds a tensor of a class of its own; save it again as a plain tensor")
    return make(*arguments)


def _dict(*arguments: Any) -> dict[Any, Any]:
    held: dict[Any, Any] = {}
    for argument in arguments:
        if not isinstance(argument, dict | list | tuple):
            raise ValueError(f"its pickle makes a dict of something else; {DAMAGED}")
        fill(held, argument.items() if isinstance(argument, dict) else argument)
    return held


def _sequence(*arguments: Any) -> tuple[Any, ...]:
    if not all(isinstance(argument, list | tuple) for argument in arguments):
        raise ValueError(f"its pickle makes a tuple of something else; {DAMAGED}")
    return tuple(value for argument in arguments for value in argument)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise ValueError(f"its pickle names a device by something that is no text; {DAMAGED}")
    return kind if index is None else f"{kind}:{index}"


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"its pickle encodes something that is no text; {DAMAGED}")
    return text.encode("latin-1")


def _namespace() -> Record:
    return Record()


def _scalar_dtype(code: Any, *rest: Any) -> Record:
    del rest
    if not isinstance(code, str) or _SCALARS.fullmatch(code) is None:
        raise ValueError("its pickle has a numpy value that is no number, which is not read")
    return Record(code=code)


def _scalar(kind: Any, data: Any) -> bool | int | float:
    code = kind.get("code") if isinstance(kind, Record) else None
    if not isinstance(code, str) or _SCALARS.fullmatch(code) is None or not isinstance(kind.state, tuple):
        raise ValueError(f"its pickle has a numpy value without a dtype; {DAMAGED}")
    dtype = np.dtype(code).newbyteorder(">" if ">" in kind.state[1:2] else "<")
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError(f"its pickle has a numpy value of another size than its dtype; {DAMAGED}")
    return np.frombuffer(data, dtype)[0].item()


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
}
_CLASSES = ("torch Tensor", "torch.nn.parameter Parameter")
# "module attribute" to what stands for a call.
ALLOWED: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys(_STORAGE_DTYPES),
    **{f"torch {name}": None for name in DTYPES},
    **_TENSORS,
    "torch Tensor": None,
    "torch.nn.parameter Parameter": _parameter,
    "torch._tensor _rebuild_from_type_v2": _tensor_of_class,
    "torch Size": _sequence,
    "torch device": _device,
    "collections OrderedDict": _dict,
    "collections Counter": _dict,
    "argparse Namespace": _namespace,
    "builtins set": _sequence,
    "__builtin__ set": _sequence,
    "_codecs encode": _encode,
    "numpy dtype": _scalar_dtype,
    "numpy.core.multiarray scalar": _scalar,
    "numpy._core.multiarray scalar": _scalar,
}
