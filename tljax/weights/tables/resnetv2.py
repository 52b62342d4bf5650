"""Layouts of BiT's ResNet v2: Google's npz files, timm, Hugging Face."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tljax.models.resnetv2 import BOTTLENECK, ResNetV2Config
from tljax.weights.layout import CONV, LINEAR, Layout, Rule

_BLOCK = "layer{layer+1}_{block:02d}/"

# bit_pytorch/models.py, bit_tf2/models.py and bit_jax/models.py: what Google's code does otherwise than the registry's
# architectures, which are timm's.
BIT_SETTINGS = {"weight_epsilon": 1e-10}
# Constants of modeling_bit.py, in no config file.
_HUGGING_FACE_EPSILONS: Mapping[str, Any] = {"norm_epsilon": 1e-5, "weight_epsilon": 1e-8}
# It rounds the widths of convolutions to multiples of this.
_HUGGING_FACE_MULTIPLE = 8

TIMM_NAMES = {f"resnetv2_{size}_bit": f"bit_r{size}" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")}


def _bit_rules(config: ResNetV2Config) -> tuple[Rule, ...]:
    del config
    block = "block{layer+1}/unit{block+1:02d}/"
    # A letter for each norm and convolution of a block; the projection stands with the first.
    lettered = tuple(
        rule
        for number, letter in enumerate("abc", 1)
        for rule in (
            Rule(f"{block}{letter}/group_norm/gamma", f"{_BLOCK}norm{number}/scale"),
            Rule(f"{block}{letter}/group_norm/beta", f"{_BLOCK}norm{number}/bias"),
            Rule(f"{block}{letter}/standardized_conv2d/kernel", f"{_BLOCK}conv{number}/kernel"),
        )
    )
    return (
        Rule("root_block/standardized_conv2d/kernel", "stem/conv/kernel"),
        *lettered,
        Rule(f"{block}a/proj/standardized_conv2d/kernel", f"{_BLOCK}shortcut/kernel"),
        Rule("group_norm/gamma", "norm/scale"),
        Rule("group_norm/beta", "norm/bias"),
        Rule("head/conv2d/kernel", "head/linear/kernel", "1 1 i o -> i o"),
        Rule("head/conv2d/bias", "head/linear/bias"),
    )


def _torch_rules(stem: str, block: str, head: str, head_axes: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{stem}.weight", "stem/conv/kernel", CONV),
        Rule(block + "norm{part}.weight", _BLOCK + "norm{part}/scale"),
        Rule(block + "norm{part}.bias", _BLOCK + "norm{part}/bias"),
        Rule(block + "conv{part}.weight", _BLOCK + "conv{part}/kernel", CONV),
        Rule(block + "downsample.conv.weight", _BLOCK + "shortcut/kernel", CONV),
        Rule("norm.weight", "norm/scale"),
        Rule("norm.bias", "norm/bias"),
        Rule(f"{head}.weight", "head/linear/kernel", head_axes),
        Rule(f"{head}.bias", "head/linear/bias"),
    )


_TIMM_RULES = _torch_rules("stem.conv", "stages.{layer}.blocks.{block}.", "head.fc", "o i 1 1 -> i o")
_HUGGING_FACE_RULES = _torch_rules(
    "embedder.convolution", "encoder.stages.{layer}.layers.{block}.", "classifier.1", LINEAR
)  # fmt: skip

# bit_pytorch/models.py and bit_jax/tf2jax.py of google-research/big_transfer read the same files.
BIT = Layout(
    name="bit-npz",
    description="BiT-S and BiT-M as Google published them (npz)",
    family=ResNetV2Config,
    prefixes=("resnet/",),
    anchors=("root_block/standardized_conv2d/kernel", "block1/unit01/a/group_norm/gamma"),
    rules=_bit_rules,
    published=lambda config: replace(config, **BIT_SETTINGS),
)

# timm/models/resnetv2.py; its other ResNets v2 have a BatchNorm or a stem of three convolutions.
TIMM = Layout(
    name="timm-resnetv2",
    description="timm's resnetv2_*_bit",
    family=ResNetV2Config,
    prefixes=("", "module.", "model.", "state_dict.", "state_dict.module."),
    anchors=("stem.conv.weight", "stages.0.blocks.0.norm1.weight", "norm.weight"),
    absent=("norm.running_mean",),
    rules=lambda config: _TIMM_RULES,
)

# transformers/models/bit/modeling_bit.py: BitModel, and BitForImageClassification and BitBackbone around it.
HUGGING_FACE = Layout(
    name="hf-bit",
    description="Hugging Face's BitModel, BitForImageClassification and BitBackbone",
    family=ResNetV2Config,
    prefixes=("", "bit."),
    anchors=("embedder.convolution.weight", "encoder.stages.0.layers.0.norm1.weight", "norm.weight"),
    rules=lambda config: _HUGGING_FACE_RULES,
)

LAYOUTS = (BIT, TIMM, HUGGING_FACE)

# Switches of BitConfig that the net knows one setting of. The width factor is none of the net's business there: the
# final norm leaves it out, so that only 1 works.
_SWITCHES = {
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "width_factor": 1,
}
_NUMBERS = ("depths", "hidden_sizes", "embedding_size", "num_groups", "num_channels")


def from_hugging_face(config: Mapping[str, Any]) -> ResNetV2Config:
    """Return the architecture that a config.json of model_type "bit" describes, without a classifier.

    Args:
        config: its values, those included that are the defaults of transformers.

    Raises:
        ValueError: values are missing, or ask for what the net cannot do; all in one message.
    """
    problems = [f"{name} is missing" for name in (*_SWITCHES, *_NUMBERS) if name not in config]
    problems += [
        f"{name} = {config[name]!r} (wanted {value!r})"
        for name, value in _SWITCHES.items()
        if name in config and config[name] != value
    ]
    # A fifth layer would be dilated, to keep the output stride.
    if len(config.get("depths", ())) > 4:
        problems.append(f"{len(config['depths'])} layers (wanted at most 4)")
    problems += _rounded_widths(config.get("hidden_sizes", ()))
    if problems:
        raise ValueError("config.json of model_type 'bit': not supported: " + "; ".join(problems))
    return ResNetV2Config(
        depths=tuple(config["depths"]),
        widths=tuple(config["hidden_sizes"]),
        stem_width=config["embedding_size"],
        num_groups=config["num_groups"],
        **_HUGGING_FACE_EPSILONS,
        in_channels=config["num_channels"],
    )


def to_hugging_face(architecture: ResNetV2Config) -> dict[str, Any]:
    """Return the config.json of an architecture, as plain values.

    Raises:
        ValueError: transformers would compute something else; all reasons in one message.
    """
    problems = _rounded_widths(architecture.scaled_widths)
    for name, value in _HUGGING_FACE_EPSILONS.items():
        if getattr(architecture, name) != value:
            problems.append(
                f"{name} {getattr(architecture, name)} is {value} there; "
                f"dataclasses.replace(architecture, {name}={value}) computes what it will"
            )
    if len(architecture.depths) > 4:
        problems.append(f"{len(architecture.depths)} layers, of which all after the fourth are dilated there")
    if problems:
        raise ValueError("transformers' BiT cannot be this net: " + "; ".join(problems))
    return {
        "model_type": "bit",
        "architectures": ["BitForImageClassification" if architecture.num_classes else "BitModel"],
        "depths": list(architecture.depths),
        "hidden_sizes": list(architecture.scaled_widths),
        "embedding_size": architecture.scaled_stem_width,
        "num_groups": architecture.num_groups,
        "num_channels": architecture.in_channels,
        **_SWITCHES,
    }


def _rounded_widths(widths: Any) -> list[str]:
    multiple = BOTTLENECK * _HUGGING_FACE_MULTIPLE
    return [f"width {width} is no multiple of {multiple} and is rounded there" for width in widths if width % multiple]
