"""Tell the format of a file by its first bytes."""

from collections.abc import Callable
from typing import Any

from tljax.weights.formats import flax_msgpack, hdf5, npz, onnx, safetensors, torch_legacy, torch_zip, zip_archive
from tljax.weights.formats.weight_file import WeightFile
from tljax.weights.formats.zip_archive import Member
from tljax.weights.stored import Stored

Contents = tuple[dict[str, Stored], dict[str, Any]]
Reader = Callable[[WeightFile], Contents]

SAFETENSORS, TORCH, NPZ, MSGPACK, ONNX, HDF5, INDEX = (
    "safetensors", "torch", "npz", "msgpack", "onnx", "hdf5", "index",
)  # fmt: skip

_HEAD_BYTES = 512
_LEGACY_MARK = torch_legacy.MAGIC_NUMBER.to_bytes(10, "little")
_TENSORFLOW_TABLE = bytes.fromhex("57fb808b247547db")
_KNOWN = "safetensors, torch.save (.pth, .bin), npz, Flax msgpack, ONNX and HDF5 (Keras .h5)"

# What is no file of weights, or none that is read: first bytes, and what to do.
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file; run `git lfs pull`, or download it",
    b"\x1f\x8b": "is packed with gzip; unpack it with gunzip",
    b"BZh": "is packed with bzip2; unpack it with bunzip2",
    b"\xfd7zXZ\x00": "is packed with xz; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it with unzstd",
    b"\x93NUMPY": "is a single array of numpy without names; save the arrays with np.savez",
    b"\x08\x01\x12": "is a SavedModel of TensorFlow, which is not read; save the weights with Keras as .weights.h5",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def recognise(file: WeightFile) -> tuple[str, Reader | None]:
    """Return the name of the format and what reads it; for an index of shards, nothing.

    Raises:
        ValueError: it is in no format that is read; the message says what it is, or how it begins.
    """
    head = file.read(0, min(_HEAD_BYTES, file.size)).tobytes()
    if head.startswith(b"PK"):
        return _of_archive(file)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return HDF5, hdf5.read
    if head.startswith(b"\x80") and _LEGACY_MARK in head[:32]:
        return TORCH, torch_legacy.read
    _refuse_others(file, head)
    if head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        return SAFETENSORS, safetensors.read
    if head.startswith(b"{"):
        return INDEX, None
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return MSGPACK, flax_msgpack.read
    # The version of the format, then the name of the writer or what follows it.
    if head[0] == 0x08 and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return ONNX, onnx.read
    raise ValueError(f"{file.path} is in no known format: it begins with {head[:16].hex(' ')}; known are {_KNOWN}")


def _refuse_others(file: WeightFile, head: bytes) -> None:
    for mark, advice in _OTHERS.items():
        if head.startswith(mark):
            raise ValueError(f"{file.path} {advice}")
    if head.lstrip().lower().startswith(_PAGES):
        raise ValueError(f"{file.path} is a web page, not the file; the download went wrong, look at its address")
    if head[257:262] == b"ustar":
        raise ValueError(f"{file.path} is a tar archive; unpack it, and give the path of what is in it")
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ValueError(f"{file.path} is a pickle that torch.save did not write, which is not read; save it as npz")
    end = file.read(max(0, file.size - len(_TENSORFLOW_TABLE)), min(file.size, len(_TENSORFLOW_TABLE)))
    if end.tobytes() == _TENSORFLOW_TABLE:
        raise ValueError(
            f"{file.path} is a checkpoint of TensorFlow, which is not read; load it there and save the weights as npz"
        )


def _of_archive(file: WeightFile) -> tuple[str, Reader]:
    try:
        members = zip_archive.members(file)
    except ValueError as error:
        raise ValueError(f"{file.path} cannot be read as a zip archive: {error}") from error
    kind, read = _kind_of_archive(file, members)
    return kind, lambda file: read(file, members)


def _kind_of_archive(
    file: WeightFile, members: dict[str, Member]
) -> tuple[str, Callable[[WeightFile, dict[str, Member]], Contents]]:
    names = [name.rpartition("/")[2] for name in members]
    if "constants.pkl" in names:
        raise ValueError(
            f"{file.path} is TorchScript, which holds code; load it with torch.jit.load and save its state dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    if names.count(torch_zip.PICKLE) == 1:
        return TORCH, torch_zip.read
    if names and all(name.endswith(npz.SUFFIX) for name in names):
        return NPZ, npz.read
    if "model.weights.h5" in names:
        raise ValueError(f"{file.path} is an archive of Keras; unpack it, and give the path of its model.weights.h5")
    held = ", ".join(list(members)[:5]) or "nothing"
    raise ValueError(f"{file.path} is a zip archive, not one of torch.save or np.savez: it holds {held[:500]}")
