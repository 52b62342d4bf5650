"""Pickles that want more than to be data: refused with a clear error, and nothing of them runs."""

import argparse
import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.fuzz_formats import time_limit
from tests.golden.make_torch_files import FOLDER
from tljax.weights.formats import weight_file
from tljax.weights.read import read_checkpoint

PROTOCOL = b"\x80\x02"
LEGACY_HEAD = b"".join(
    pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)
# Many small objects are allowed however small the file is; here it is fewer, for checked annotations make each slow.
FREE_ITEMS = 5_000
BYTES_PER_ITEM = 100
# One text of 256 KiB as it is in the file, and as Python keeps it, with four bytes a character.
TEXT_BYTES = 5 << 18


def write(path, content, storages=(), is_legacy=False):
    """Write a file of torch around a pickle; storages are bytes called "0", "1" and so on."""
    if is_legacy:
        path.write_bytes(LEGACY_HEAD + content + pickle.dumps([], protocol=2))
        return path
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content)
        for index, data in enumerate(storages):
            file.writestr(f"model/data/{index}", data)
    return path


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)[: 3 if self.state else 2]


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def entry(value):
    """Return a pickle of {"a": value}, of instructions that make the value."""
    return PROTOCOL + b"}" + text("a") + value + b"s."


TOUCH = "touch canary"
NAMED = {
    "os.system": (Call(os.system, TOUCH), "posix.system"),
    "eval": (Call(eval, "open('canary', 'w')"), "builtins.eval"),
    "exec": (Call(exec, "open('canary', 'w')"), "builtins.exec"),
    "open": (Call(open, "canary", "w"), "(builtins|io|_io).open"),
    "getattr": (Call(getattr, "x", "y"), "builtins.getattr"),
    "import": (Call(builtins.__import__, "os"), "builtins.__import__"),
    "subprocess": (
        Call(subprocess.Popen, TOUCH, -1, None, None, None, None, None, True, True),
        "(subprocess|commands).Popen",
    ),
    "numpy.load": (Call(np.load, "canary"), "numpy.load"),
    "pickle.loads": (Call(pickle.loads, pickle.dumps(1)), "(_pickle|cPickle|pickle).loads"),
    "state": (Call(argparse.ArgumentParser, state={"prog": "x"}), "argparse.ArgumentParser"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", NAMED)
def test_calls_are_refused_by_name(folder, name, protocol, is_legacy):
    value, wanted = NAMED[name]
    content = pickle.dumps({"weight": [value]}, protocol=protocol)
    path = write(folder / "model.pth", content, is_legacy=is_legacy)
    wanted = wanted.replace("builtins", "(builtins|__builtin__)")
    with pytest.raises(
        ValueError, match=f"its pickle asks for '{wanted}', which is refused; nothing of it was"
    ) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_what_the_calls_would_do_when_run(folder):
    """The canary is found where the pickle is loaded by pickle: the tests above can fail."""
    pickle.loads(pickle.dumps(NAMED["os.system"][0]))
    assert (folder / "canary").exists()
    (folder / "canary").unlink()


ALLOWED_CLASS = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        # Names with dots reach through what is allowed.
        (b"ctorch.serialization\nos.system\n" + b"(" + text(TOUCH) + b"tR", "asks for 'torch.serialization.os.system'"),
        (b"ccollections\nOrderedDict.__init__\n)R", "asks for 'collections.OrderedDict.__init__'"),
        (b"ctorch\nos.system\n)R", "asks for 'torch.os.system'"),
        (b"ctorch.storage\n_load_from_bytes\n" + b"(" + text("x") + b"tR", "asks for 'torch.storage._load_from_bytes'"),
        (b"ctorch\nload\n" + b"(" + text("x") + b"tR", "asks for 'torch.load'"),
        (text("os") + text("system") + b"\x93(" + text(TOUCH) + b"tR", "asks for 'os.system'"),
        (text("torch") + text("os.system") + b"\x93)R", "asks for 'torch.os.system'"),
        (text("torch FloatStorage") + text("__init__") + b"\x93", "asks for 'torch.FloatStorage.__init__'"),
        (b"K\x01K\x02\x93", "names something by values that are no text"),
        # Instances, extensions and buffers.
        (b"(ios\nsystem\n", "has the instruction INST, which is refused"),
        (b"(" + ALLOWED_CLASS + b"o", "has the instruction OBJ, which is refused"),
        (b"\x82\x01", "has the instruction EXT1, which is refused"),
        (b"\x83\x01\x00", "has the instruction EXT2, which is refused"),
        (b"\x84\x01\x00\x00\x00", "has the instruction EXT4, which is refused"),
        (ALLOWED_CLASS + b")}\x92", "has the instruction NEWOBJ_EX, which is refused"),
        (b"\x97", "has the instruction NEXT_BUFFER, which is refused"),
        (b"\x96" + struct.pack("<Q", 1) + b"x", "has the instruction BYTEARRAY8, which is refused"),
        # Calls of what is no function, of what may only be named, and with other arguments.
        (text("os.system") + b")R", "calls a str, which is refused"),
        (ALLOWED_CLASS + b")R)R", "calls a dict, which is refused"),
        (b"ctorch\nFloatStorage\n)R", "calls 'torch FloatStorage', which is refused"),
        (b"ctorch\nTensor\n)\x81", "calls 'torch Tensor', which is refused"),
        (ALLOWED_CLASS + b"]R", "calls 'collections OrderedDict', which is refused"),
        (ALLOWED_CLASS + text("x") + b"\x85R", "makes a dict of something else"),
        (REBUILD + b")R", "calls 'torch._utils _rebuild_tensor_v2' with other arguments than torch"),
        (REBUILD + b"(K\x00K\x00))NNtR", "builds a tensor of something that is no storage"),
        (b"cargparse\nNamespace\nK\x01\x85R", "calls 'argparse Namespace' with other arguments than torch"),
        (b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R", "encodes something that is no text"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(" + ALLOWED_CLASS + ALLOWED_CLASS + b")NtR", "a class of its own"),
        # What is stored elsewhere is a storage.
        (text("os") + b"Q", "refers to something stored that is no storage of numbers"),
        (
            b"(" + text("storage") + ALLOWED_CLASS + text("0") + text("cpu") + b"K\x01tQ",
            "that is no storage of numbers",
        ),
        (b"(" + text("module") + b"NNNtQ", "holds a whole module, not its params"),
        (b"Pmodel\n", "has the instruction PERSID, which is refused"),
        (
            b"(" + text("storage") + b"ctorch\nFloatStorage\nK\x01" + text("cpu") + b"K\x01tQ",
            "without a name and a size",
        ),
        # Damage.
        (b"0", "takes more values than it has"),
        (b"h\x07", "repeats a value that it did not keep"),
        (b"t", "ends a list that it did not begin"),
        (b"(K\x01d", "has a key without a value"),
        (b")\x85}))s", "has a dict with keys that are neither text nor number"),
        (b"}(" + text("k") + b"N" + text("k") + b"Nu", "has the key 'k' twice in one dict"),
        (b"K\x01K\x02a", "fills a int as if it were a list"),
        (b"\x8a\x20" + b"\x11" * 32, "has an integer of 253 bits"),
        (b"S'\\z'\n", "its pickle is damaged"),
        (b"\xf0", "its pickle is damaged"),
    ],
)
def test_instructions_that_data_does_not_need(folder, value, message):
    path = write(folder / "model.pth", entry(value))
    with pytest.raises(ValueError, match=f"model.pth cannot be read as torch: .*{message}"):
        read_checkpoint(path)


def test_state_sets_nothing(folder):
    """BUILD with the attributes of a class, of a dict and of a tensor leaves them as they are."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    state = b"}(" + text("__class__") + text("x") + text("shape") + b"Nub"
    tensor = REBUILD + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89NtR"
    content = entry(b"}(" + text("t") + tensor + state + text("d") + ALLOWED_CLASS + b")R" + state + b"u")
    checkpoint = read_checkpoint(write(folder / "model.pth", content, [np.array([1, 2], np.float32).tobytes()]))
    np.testing.assert_array_equal(checkpoint.arrays["a.t"].read(), [1, 2])
    assert type(checkpoint.arrays["a.t"].read()) is np.ndarray
    assert checkpoint.settings == {}


def tensor_file(path, shape, strides, offset=0, length=6, data=bytes(24)):
    """Write one tensor, a view of a storage of float32."""
    number = lambda value: b"\x8a\x09" + value.to_bytes(9, "little", signed=True)  # noqa: E731
    numbers = lambda values: b"(" + b"".join(map(number, values)) + b"t"  # noqa: E731
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(length) + b"tQ"
    view = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89N"
    return write(path, entry(REBUILD + b"(" + view + b"tR"), [data])


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"shape": (7,), "strides": (1,)}, r"float32 \(7,\) at 0 ends after the 24 bytes of its storage"),
        ({"shape": (6,), "strides": (1,), "offset": 1}, r"float32 \(6,\) at 4 ends after"),
        ({"shape": (2, 2), "strides": (5, 2)}, "ends after the 24 bytes"),
        ({"shape": (0,), "strides": (1,), "offset": 7}, "ends after the 24 bytes"),
        ({"shape": (2,), "strides": (2**62,)}, "ends after the 24 bytes"),
        ({"shape": (2**40,), "strides": (0,)}, "is more than twice the file"),
        ({"shape": (2**40, 2**40), "strides": (0, 0)}, "has the impossible shape"),
        ({"shape": (1,) * 65, "strides": (0,) * 65}, "has 65 axes"),
        ({"shape": (6,), "strides": (1,), "length": 7}, "should have 7 float32, and has 24 bytes"),
        ({"shape": (-1,), "strides": (1,)}, "that is no storage, shape and strides"),
        ({"shape": (2,), "strides": (-1,), "offset": 5}, "that is no storage, shape and strides"),
        ({"shape": (2, 2), "strides": (1,)}, "that is no storage, shape and strides"),
        ({"shape": (6,), "strides": (1,), "offset": 2**63}, "that is no storage, shape and strides"),
    ],
)
def test_views_stay_inside_of_their_storage(folder, view, message):
    path = tensor_file(folder / "model.pth", **view)
    with pytest.raises(ValueError, match=f"model.pth cannot be read as torch: .*{message}"):
        read_checkpoint(path)


def test_a_storage_that_is_not_there(folder):
    content = tensor_file(folder / "model.pth", (6,), (1,)).read_bytes()
    (folder / "model.pth").write_bytes(content.replace(b"model/data/0", b"model/data/9"))
    with pytest.raises(ValueError, match="model.pth cannot be read as torch: array 'a': its storage '0' is not in the"):
        read_checkpoint(folder / "model.pth")


def test_big_endian_files(folder):
    path = folder / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", PROTOCOL + b"}.")
        file.writestr("model/byteorder", b"big")
    with pytest.raises(ValueError, match=r"model\.pth .* big-endian"):
        read_checkpoint(path)
    data = (FOLDER / "torch_legacy.pth").read_bytes()
    path.write_bytes(data.replace(text("little_endian") + b"q\x02\x88", text("little_endian") + b"q\x02\x89"))
    with pytest.raises(ValueError, match=r"model\.pth .* big-endian"):
        read_checkpoint(path)


def test_values_of_numpy(folder):
    values = {"a": np.float64(0.1), "b": np.int32(-5), "c": np.bool_(True), "d": np.dtype(">f4").type(2.5)}
    for protocol in (2, 4):
        path = write(folder / "model.pth", pickle.dumps(values, protocol=protocol))
        assert read_checkpoint(path).settings == {"a": 0.1, "b": -5, "c": True, "d": 2.5}


def test_an_ordered_dict_of_python_2(folder):
    """It is written as a list of pairs, and its text as bytes."""
    pair = b"](U\x01kU\x01ve"
    path = write(folder / "model.pth", entry(ALLOWED_CLASS + b"](" + pair + b"e\x85R"))
    assert read_checkpoint(path).settings == {"a.k": "v"}
    assert collections.OrderedDict([["k", "v"]]) == {"k": "v"}


COUNT = 200_000


def repeated(kept, again):
    """Keep a value under 0, then make many of it."""
    return PROTOCOL + b"](" + kept + b"q\x00" + again * (COUNT // len(again)) + b"e."


LARGE = b"}(" + b"".join(text(str(index)) + b"N" for index in range(500)) + b"u"
LONG = text("x" * 50_000)
# Each list holds the one before it twice.
DOUBLED = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (index + 1, index, index) for index in range(60))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PROTOCOL + b"}" * COUNT + b".", id="many dicts"),
        pytest.param(PROTOCOL + b")" + b"\x85" * COUNT + b".", id="deep tuples"),
        pytest.param(PROTOCOL + b"})" + b"\x85" * COUNT + b"K\x01s.", id="deep tuples as a key"),
        pytest.param(PROTOCOL + b"Nr\xff\xff\xff\x3f.", id="index of the memo"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", id="length of bytes"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.", id="length of a frame"),
        pytest.param(PROTOCOL + text("\U0001f600" + "x" * COUNT) + b".", id="wide text"),
        pytest.param(PROTOCOL + b"\x8b" + struct.pack("<i", COUNT) + b"\x11" * COUNT + b".", id="large integer"),
        pytest.param(repeated(b"}", b"h\x00"), id="one value often"),
        pytest.param(repeated(LARGE, ALLOWED_CLASS + b"h\x00\x85R"), id="copies of a dict"),
        pytest.param(repeated(LARGE, b"cargparse\nNamespace\n)Rh\x00b"), id="copies of attributes"),
        pytest.param(repeated(LONG, b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"), id="copies of a text"),
        pytest.param(repeated(LONG, b"ctorch\ndevice\nh\x00K\x00\x86R"), id="names of devices"),
        pytest.param(PROTOCOL + b"(" + DOUBLED + b"1}" + text("a") + b"h\x3cs.", id="doubled"),
        pytest.param(PROTOCOL + b"}q\x00" + text("a") + b"h\x00s.", id="a dict in itself"),
    ],
)
def test_small_files_do_not_become_large(folder, monkeypatch, content):
    """Each of them makes pickle.loads, or a walk through what it returns, take far more than the file, or crash."""
    monkeypatch.setattr(weight_file, "_FREE_ITEMS", FREE_ITEMS)
    path = write(folder / "model.pth", content)
    tracemalloc.start()
    try:
        try:
            with time_limit(path):
                read_checkpoint(path)
        except ValueError as error:
            message = str(error)
        else:
            message = "no error"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in message or message == "no error"
    assert peak <= 2 * path.stat().st_size + FREE_ITEMS * BYTES_PER_ITEM + TEXT_BYTES


def test_a_pickle_that_would_unpack_to_more_than_the_file(folder):
    path = folder / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", PROTOCOL + b"}." + bytes(600_000))
    with pytest.raises(ValueError, match="model.pth cannot be read as torch: its pickle would unpack to 600,004 bytes"):
        read_checkpoint(path)


def test_pickles_of_pickle_are_not_read(folder):
    (folder / "model.pkl").write_bytes(pickle.dumps(Call(os.system, TOUCH)))
    with pytest.raises(ValueError, match="model.pkl is a pickle that torch.save did not write"):
        read_checkpoint(folder / "model.pkl")
    made = io.BytesIO()
    np.save(made, np.array([Call(os.system, TOUCH)], object), allow_pickle=True)
    with zipfile.ZipFile(folder / "model.npz", "w") as file:
        file.writestr("a.npy", made.getvalue())
    with pytest.raises(ValueError, match="array 'a': it holds Python objects, which are not read"):
        read_checkpoint(folder / "model.npz")
