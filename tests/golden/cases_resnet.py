"""ResNets of torchvision, timm and Hugging Face."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.record import Case, channels_last

# Odd sides: an even one hides where the padding of a stride of 2 stands.
IMAGE_SIZE = (33, 47)
DEPTHS = (1, 2, 1, 1)


def _torch_taps(depths: tuple[int, ...], stem: str, block: str) -> dict[str, tuple[str, Any]]:
    blocks = {
        f"layer{layer + 1}_{number:02d}": (block.format(layer=layer, stage=layer + 1, number=number), channels_last)
        for layer, count in enumerate(depths)
        for number in range(count)
    }
    return {"stem": (stem, channels_last), **blocks}


def _torchvision(block: str, width_scale: int, depths: tuple[int, ...], **settings: Any) -> Case:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    is_bottleneck = block == "bottleneck"
    widths = tuple(64 * width_scale * 2**layer for layer in range(4))
    return Case(
        layout="torchvision-resnet",
        family="resnet",
        architecture={
            "depths": depths, "widths": widths, "is_bottleneck": is_bottleneck, "num_classes": 7,
            **({"groups": settings["groups"]} if "groups" in settings else {}),
            **({"width_per_group": settings["width_per_group"]} if "width_per_group" in settings else {}),
        },
        image_size=IMAGE_SIZE,
        model=ResNet(Bottleneck if is_bottleneck else BasicBlock, list(depths), num_classes=7, **settings),
        taps=_torch_taps(depths, "maxpool", "layer{stage}.{number}"),
    )  # fmt: skip


def basic() -> Case:
    return _torchvision("basic", 1, DEPTHS)


def bottleneck() -> Case:
    return _torchvision("bottleneck", 4, DEPTHS)


def next_() -> Case:
    return _torchvision("bottleneck", 4, (1, 1, 2, 1), groups=32, width_per_group=4)


def wide() -> Case:
    return _torchvision("bottleneck", 4, (2, 1, 1, 1), width_per_group=128)


def timm() -> Case:
    """Narrow, of one channel, with a block count of two digits."""
    from timm.models.resnet import Bottleneck, ResNet

    depths = (1, 11, 1, 1)
    return Case(
        layout="torchvision-resnet",
        family="resnet",
        architecture={
            "depths": depths, "widths": (32, 64, 96, 128), "stem_width": 64, "num_classes": 5, "in_channels": 1,
        },
        image_size=IMAGE_SIZE,
        model=ResNet(Bottleneck, layers=depths, channels=(8, 16, 24, 32), num_classes=5, in_chans=1),
        taps=_torch_taps(depths, "maxpool", "layer{stage}.{number}"),
    )  # fmt: skip


def _hugging_face(layer_type: str, has_head: bool, **settings: Any) -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

    sizes = (16, 24, 32, 40)
    config = ResNetConfig(
        depths=DEPTHS, hidden_sizes=sizes, embedding_size=8, layer_type=layer_type, num_labels=3, **settings
    )  # fmt: skip
    backbone = "resnet." if has_head else ""
    taps = _torch_taps(DEPTHS, f"{backbone}embedder", backbone + "encoder.stages.{layer}.layers.{number}")
    if not has_head:
        taps["head"] = ("pooler", lambda output: output.flatten(1))
    return Case(
        layout="hf-resnet",
        family="resnet",
        architecture={
            "depths": DEPTHS, "widths": sizes, "stem_width": 8, "is_bottleneck": layer_type == "bottleneck",
            "num_classes": 3 if has_head else 0,
            "is_first_halved": settings.get("downsample_in_first_stage", False),
            "is_halved_early": settings.get("downsample_in_bottleneck", False),
            "in_channels": settings.get("num_channels", 3),
        },
        image_size=IMAGE_SIZE,
        model=(ResNetForImageClassification if has_head else ResNetModel)(config),
        taps=taps,
        config=config.to_dict(),
    )  # fmt: skip


def hugging_face_basic() -> Case:
    return _hugging_face("basic", True, downsample_in_first_stage=True, num_channels=4)


def hugging_face_bottleneck() -> Case:
    return _hugging_face("bottleneck", True)


def hugging_face_backbone() -> Case:
    """The paper's version 1: the map is halved in the first convolution."""
    return _hugging_face("bottleneck", False, downsample_in_bottleneck=True)


def _flax(layer_type: str, has_head: bool) -> Case:
    """transformers 4, which has no torch beside it here: only what its Flax model puts out is recorded."""
    from flax.traverse_util import flatten_dict, unflatten_dict
    from transformers import FlaxResNetForImageClassification, FlaxResNetModel, ResNetConfig  # pyright: ignore

    sizes = (16, 24, 32, 40)
    config = ResNetConfig(
        depths=DEPTHS, hidden_sizes=sizes, embedding_size=8, layer_type=layer_type, num_labels=3
    )  # fmt: skip
    kind = FlaxResNetForImageClassification if has_head else FlaxResNetModel
    model = kind(config, input_shape=(1, *IMAGE_SIZE, 3))
    shapes = {"/".join(key): value.shape for key, value in flatten_dict(model.params).items()}

    def outputs(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
        params = unflatten_dict({tuple(key.split("/")): value for key, value in arrays.items()})
        result = model(images.transpose(0, 3, 1, 2), params=params, output_hidden_states=True)  # b h w c -> b c h w
        names = ["stem", *(f"layer{layer + 1}_{count - 1:02d}" for layer, count in enumerate(DEPTHS))]
        # The outputs of the stem and of each layer, channels first.
        states = [np.asarray(state).transpose(0, 2, 3, 1) for state in result.hidden_states]  # b c h w -> b h w c
        head = result.logits if has_head else np.asarray(result.pooler_output)[:, :, 0, 0]
        return {**dict(zip(names, states, strict=True)), "head": np.asarray(head)}

    return Case(
        layout="hf-flax-resnet" if has_head else "hf-flax-resnet-backbone",
        family="resnet",
        architecture={
            "depths": DEPTHS, "widths": sizes, "stem_width": 8, "is_bottleneck": layer_type == "bottleneck",
            "num_classes": 3 if has_head else 0,
        },
        image_size=IMAGE_SIZE,
        shapes=shapes,
        outputs=outputs,
        config=config.to_dict(),
    )  # fmt: skip


def flax_basic() -> Case:
    return _flax("basic", True)


def flax_bottleneck() -> Case:
    return _flax("bottleneck", True)


def flax_backbone() -> Case:
    return _flax("bottleneck", False)


CASES = {
    "resnet_torchvision_basic": basic,
    "resnet_torchvision_bottleneck": bottleneck,
    "resnet_torchvision_next": next_,
    "resnet_torchvision_wide": wide,
    "resnet_timm": timm,
    "resnet_hf_basic": hugging_face_basic,
    "resnet_hf_bottleneck": hugging_face_bottleneck,
    "resnet_hf_backbone": hugging_face_backbone,
    "resnet_flax_basic": flax_basic,
    "resnet_flax_bottleneck": flax_bottleneck,
    "resnet_flax_backbone": flax_backbone,
}
