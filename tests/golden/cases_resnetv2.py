"""BiT's ResNet v2 in Google's npz, timm and Hugging Face."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.record import Case, channels_last

# Odd sides: an even one hides where the padding of a stride of 2 stands.
IMAGE_SIZE = (33, 47)


def _timm_model(
    layers: tuple[int, ...], channels: tuple[int, ...], *, num_groups: int, epsilon: float, num_classes: int
) -> Any:
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2

    # As timm's resnetv2_*_bit; the stem is as wide as theirs, 64 channels.
    return ResNetV2(
        layers=list(layers),
        channels=channels,
        num_classes=num_classes,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=epsilon),
        norm_layer=partial(GroupNormAct, num_groups=num_groups),
    )


def _timm_taps(layers: tuple[int, ...]) -> dict[str, tuple[str, Any]]:
    blocks = {
        f"layer{layer + 1}_{block:02d}": (f"stages.{layer}.blocks.{block}", channels_last)
        for layer, count in enumerate(layers)
        for block in range(count)
    }
    return {"stem": ("stem", channels_last), **blocks, "norm": ("norm", channels_last)}


def timm() -> Case:
    layers, channels = (1, 2, 1, 1), (32, 64, 96, 64)
    return Case(
        layout="timm-resnetv2",
        family="resnetv2",
        architecture={"depths": layers, "widths": channels, "num_groups": 8, "num_classes": 7},
        image_size=IMAGE_SIZE,
        model=_timm_model(layers, channels, num_groups=8, epsilon=1e-8, num_classes=7),
        taps=_timm_taps(layers),
    )


def bit_npz() -> Case:
    """A file under BiT's names, read by timm's own reader of them; the epsilon is that of BiT's own code."""
    layers, channels = (1, 1, 2, 1), (128, 128, 256, 128)
    return Case(
        layout="bit-npz",
        family="resnetv2",
        architecture={"depths": layers, "widths": channels, "weight_epsilon": 1e-10, "num_classes": 5},
        image_size=IMAGE_SIZE,
        model=_timm_model(layers, channels, num_groups=32, epsilon=1e-10, num_classes=5),
        taps=_timm_taps(layers),
        shapes=_bit_shapes(layers, channels, num_classes=5),
        dtypes={},
        load=_load_npz,
    )


def _load_npz(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bit.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType] (keys are names of arrays)
        model.load_pretrained(str(path))


def _bit_shapes(layers: tuple[int, ...], channels: tuple[int, ...], num_classes: int) -> dict[str, tuple[int, ...]]:
    """Spell out the names of the files, as bit_pytorch/models.py of google-research/big_transfer reads them."""
    conv = "standardized_conv2d/kernel"
    shapes: dict[str, tuple[int, ...]] = {f"resnet/root_block/{conv}": (7, 7, 3, 64)}
    before = 64
    for layer, (count, width) in enumerate(zip(layers, channels, strict=True), 1):
        for unit in range(1, count + 1):
            prefix, hidden = f"resnet/block{layer}/unit{unit:02d}", width // 4
            kernels = {"a": (1, 1, before, hidden), "b": (3, 3, hidden, hidden), "c": (1, 1, hidden, width)}
            for letter, shape in kernels.items():
                shapes[f"{prefix}/{letter}/{conv}"] = shape
                shapes[f"{prefix}/{letter}/group_norm/gamma"] = (shape[2],)
                shapes[f"{prefix}/{letter}/group_norm/beta"] = (shape[2],)
            if unit == 1:
                shapes[f"{prefix}/a/proj/{conv}"] = (1, 1, before, width)
            before = width
    norm = {"resnet/group_norm/gamma": (before,), "resnet/group_norm/beta": (before,)}
    head = {"resnet/head/conv2d/kernel": (1, 1, before, num_classes), "resnet/head/conv2d/bias": (num_classes,)}
    return {**shapes, **norm, **head}


def hugging_face() -> Case:
    from transformers import BitConfig, BitForImageClassification

    depths, hidden_sizes = (2, 1, 1, 1), (32, 64, 64, 96)
    config = BitConfig(
        depths=depths, hidden_sizes=hidden_sizes, embedding_size=16, num_groups=8, num_channels=4,
        id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    blocks = {
        f"layer{layer + 1}_{block:02d}": (f"bit.encoder.stages.{layer}.layers.{block}", channels_last)
        for layer, count in enumerate(depths)
        for block in range(count)
    }
    return Case(
        layout="hf-bit",
        family="resnetv2",
        architecture={
            "depths": depths, "widths": hidden_sizes, "stem_width": 16, "num_groups": 8, "num_classes": 3,
            "in_channels": 4,
        },
        image_size=IMAGE_SIZE,
        model=BitForImageClassification(config),
        taps={"stem": ("bit.embedder", channels_last), **blocks, "norm": ("bit.norm", channels_last)},
        config=config.to_dict(),
    )  # fmt: skip


CASES = {"resnetv2_timm": timm, "resnetv2_bit_npz": bit_npz, "resnetv2_hugging_face": hugging_face}
