"""VGG in torchvision, timm and the names of Keras."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.record import Case, as_is, channels_last

HIDDEN_WIDTH = 24
# Of three blocks: a last map of 8 x 13, more than the grid of 7 and no multiple of it.
THREE_BLOCKS = {"convolutions": (1, 2, 1), "widths": (6, 8, 16)}
# Of five blocks: a last map of 2 x 3, less than the grid.
FIVE_BLOCKS = {"convolutions": (1, 2, 1, 1, 2), "widths": (6, 8, 12, 16, 20)}
IMAGE_SIZE = (70, 105)


def _modules(blocks: Mapping[str, tuple[int, ...]]) -> list[int | str]:
    """List the modules as torchvision and timm do: a number for a convolution, "M" for a max-pool."""
    modules: list[int | str] = []
    for count, width in zip(blocks["convolutions"], blocks["widths"], strict=True):
        modules += [width] * count + ["M"]
    return modules


def _feature_taps(features: Any, blocks: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, Any]]:
    """Give each convolution the last module before the next one: its ReLU, or the pool that ends its block."""
    kinds = [type(module).__name__ for module in features]
    starts = [index for index, kind in enumerate(kinds) if kind == "Conv2d"]
    ends = [index - 1 for index in (*starts[1:], len(kinds))]
    names = [
        f"block{block}_conv{convolution}"
        for block, count in enumerate(blocks["convolutions"], 1)
        for convolution in range(1, count + 1)
    ]
    return {name: (f"features.{end}", channels_last) for name, end in zip(names, ends, strict=True)}


def _torchvision(blocks: Mapping[str, tuple[int, ...]], *, use_norm: bool, num_classes: int) -> Case:
    import torch
    from torch import nn
    from torchvision.models.vgg import VGG, make_layers

    features = make_layers(list(_modules(blocks)), batch_norm=use_norm)
    with torch.device("meta"):  # its own classifier has 120 million weights
        model = VGG(features, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(blocks["widths"][-1] * 49, HIDDEN_WIDTH), nn.ReLU(True), nn.Dropout(),
        nn.Linear(HIDDEN_WIDTH, HIDDEN_WIDTH), nn.ReLU(True), nn.Dropout(),
        nn.Linear(HIDDEN_WIDTH, num_classes),
    )  # fmt: skip
    return Case(
        layout="torchvision-vgg",
        family="vgg",
        architecture={**blocks, "use_norm": use_norm, "hidden_width": HIDDEN_WIDTH, "num_classes": num_classes},
        image_size=IMAGE_SIZE,
        model=model,
        taps={**_feature_taps(features, blocks), "fc1": ("classifier.1", as_is), "fc2": ("classifier.4", as_is)},
    )


def torchvision() -> Case:
    return _torchvision(THREE_BLOCKS, use_norm=False, num_classes=7)


def torchvision_bn() -> Case:
    return _torchvision(FIVE_BLOCKS, use_norm=True, num_classes=6)


def _timm(blocks: Mapping[str, tuple[int, ...]], *, use_norm: bool, num_classes: int) -> Case:
    import torch
    from timm.layers import ClassifierHead
    from timm.models.vgg import VGG, ConvMlp
    from torch import nn

    width = blocks["widths"][-1]
    with torch.device("meta"):
        model = VGG(_modules(blocks), norm_layer=nn.BatchNorm2d if use_norm else None)
    model = model.to_empty(device="cpu")
    model.pre_logits = ConvMlp(width, HIDDEN_WIDTH)
    model.head = ClassifierHead(HIDDEN_WIDTH, num_classes)
    return Case(
        layout="timm-vgg",
        family="vgg",
        architecture={
            **blocks, "use_norm": use_norm, "hidden_width": HIDDEN_WIDTH, "num_classes": num_classes,
            "is_head_convolutional": True,
        },
        image_size=IMAGE_SIZE,
        model=model,
        taps={
            **_feature_taps(model.features, blocks),
            "fc1": ("pre_logits.act1", channels_last), "fc2": ("pre_logits.act2", channels_last),
        },
    )  # fmt: skip


def timm() -> Case:
    """A map of 8 x 13, over which the linear layers slide."""
    return _timm(THREE_BLOCKS, use_norm=False, num_classes=7)


def timm_bn() -> Case:
    return _timm(FIVE_BLOCKS, use_norm=True, num_classes=6)


def _keras(layout: str, kernel: str, bias: str, *, grid: int) -> Case:
    """Kernels in Keras's axes and maps flattened in Keras's order, by torch's functions; no map is averaged there."""
    image_size, num_classes = (32 * grid, 32 * grid), 5
    widths, shapes = (3, *FIVE_BLOCKS["widths"]), {}
    for block, count in enumerate(FIVE_BLOCKS["convolutions"], 1):
        for convolution in range(1, count + 1):
            before = widths[block - 1] if convolution == 1 else widths[block]
            shapes[f"block{block}_conv{convolution}"] = (3, 3, before, widths[block])
    shapes["fc1"] = (grid * grid * widths[-1], HIDDEN_WIDTH)
    shapes |= {"fc2": (HIDDEN_WIDTH, HIDDEN_WIDTH), "predictions": (HIDDEN_WIDTH, num_classes)}
    layers = {layer: (kernel.format(layer=layer), bias.format(layer=layer)) for layer in shapes}

    def run(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
        import torch
        from torch.nn import functional

        outputs, x = {}, torch.from_numpy(images).permute(0, 3, 1, 2)
        for layer, keys in layers.items():
            weight, shift = (torch.from_numpy(arrays[key]) for key in keys)
            if layer.startswith("fc") or layer == "predictions":
                flat = x.permute(0, 2, 3, 1).flatten(1) if layer == "fc1" else x  # b c h w -> b (h w c)
                x = flat @ weight + shift
                x = x if layer == "predictions" else x.relu()
                outputs["head" if layer == "predictions" else layer] = x.numpy()
                continue
            x = functional.conv2d(x, weight.permute(3, 2, 0, 1), shift, padding=1).relu()
            block, convolution = layer.removeprefix("block").split("_conv")
            if int(convolution) == FIVE_BLOCKS["convolutions"][int(block) - 1]:
                x = functional.max_pool2d(x, 2)
            outputs[layer] = x.permute(0, 2, 3, 1).numpy()
        return outputs

    return Case(
        layout=layout,
        family="vgg",
        architecture={
            **FIVE_BLOCKS, "hidden_width": HIDDEN_WIDTH, "num_classes": num_classes, "pool_grid": grid,
        },
        image_size=image_size,
        shapes={key: shape for layer in shapes for key, shape in zip(
            layers[layer], (shapes[layer], shapes[layer][-1:]), strict=True)},
        dtypes={},
        outputs=run,
    )  # fmt: skip


def keras() -> Case:
    return _keras("keras-vgg", "{layer}/{layer}_W_1:0", "{layer}/{layer}_b_1:0", grid=2)


def keras2() -> Case:
    return _keras("keras2-vgg", "{layer}/{layer}/kernel:0", "{layer}/{layer}/bias:0", grid=1)


def keras3() -> Case:
    return _keras("keras3-vgg", "{layer}/{layer}/kernel", "{layer}/{layer}/bias", grid=1)


CASES = {
    "vgg_torchvision": torchvision,
    "vgg_torchvision_bn": torchvision_bn,
    "vgg_timm": timm,
    "vgg_timm_bn": timm_bn,
    "vgg_keras": keras,
    "vgg_keras2": keras2,
    "vgg_keras3": keras3,
}
