"""Layouts of ResNets: torchvision's, which timm shares, and Hugging Face's, in torch and in Flax."""

from collections.abc import Mapping
from typing import Any

from tljax.models.resnet import ResNetConfig
from tljax.weights.layout import CONV, LINEAR, Layout, Rule

_BLOCK = "layer{layer+1}_{block:02d}/"

TIMM_NAMES = {
    name: name
    for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
        "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    )
}  # fmt: skip


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    """Map a BatchNorm of torch."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(f"{source}.{theirs}", f"{target}/{ours}") for theirs, ours in names.items())


_TORCHVISION_BLOCK = "layer{layer+1}.{block}."
_TORCHVISION_RULES = (
    Rule("conv1.weight", "stem/conv/kernel", CONV),
    *_norm("bn1", "stem/norm"),
    Rule(_TORCHVISION_BLOCK + "conv{part}.weight", _BLOCK + "conv{part}/kernel", CONV),
    *_norm(_TORCHVISION_BLOCK + "bn{part}", _BLOCK + "norm{part}"),
    Rule(_TORCHVISION_BLOCK + "downsample.0.weight", _BLOCK + "shortcut/kernel", CONV),
    *_norm(_TORCHVISION_BLOCK + "downsample.1", _BLOCK + "shortcut_norm"),
    Rule("fc.weight", "head/linear/kernel", LINEAR),
    Rule("fc.bias", "head/linear/bias"),
)
# How many batches a BatchNorm has seen; torch needs it where there is no momentum.
_COUNTS = (r".*\.num_batches_tracked",)

# torchvision/models/resnet.py and timm/models/resnet.py.
TORCHVISION = Layout(
    name="torchvision-resnet",
    description="torchvision's ResNet, whose keys timm shares",
    family=ResNetConfig,
    prefixes=("", "module.", "model.", "state_dict.", "state_dict.module."),
    anchors=("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn1.running_mean"),
    rules=lambda config: _TORCHVISION_RULES,
    ignored=_COUNTS,
)


def _hugging_face_rules(config: ResNetConfig) -> tuple[Rule, ...]:
    block = "encoder.stages.{layer}.layers.{block}."
    convolutions = tuple(
        rule
        for part in range(3 if config.is_bottleneck else 2)
        for rule in (
            Rule(f"{block}layer.{part}.convolution.weight", f"{_BLOCK}conv{part + 1}/kernel", CONV),
            *_norm(f"{block}layer.{part}.normalization", f"{_BLOCK}norm{part + 1}"),
        )
    )
    return (
        Rule("embedder.embedder.convolution.weight", "stem/conv/kernel", CONV),
        *_norm("embedder.embedder.normalization", "stem/norm"),
        *convolutions,
        Rule(block + "shortcut.convolution.weight", _BLOCK + "shortcut/kernel", CONV),
        *_norm(block + "shortcut.normalization", _BLOCK + "shortcut_norm"),
        Rule("classifier.1.weight", "head/linear/kernel", LINEAR),
        Rule("classifier.1.bias", "head/linear/bias"),
    )


# transformers/models/resnet/modeling_resnet.py: ResNetModel, and ResNetForImageClassification around it.
HUGGING_FACE = Layout(
    name="hf-resnet",
    description="Hugging Face's ResNetModel and ResNetForImageClassification",
    family=ResNetConfig,
    prefixes=("", "resnet."),
    anchors=("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    rules=_hugging_face_rules,
    ignored=_COUNTS,
)


def _flax_norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"params/{source}/{name}", f"{target}/{name}") for name in ("scale", "bias")),
        *(Rule(f"batch_stats/{source}/{name}", f"{target}/{name}") for name in ("mean", "var")),
    )


def _flax_rules(config: ResNetConfig, backbone: str) -> tuple[Rule, ...]:
    block = backbone + "encoder/stages/{layer}/layers/{block}/"
    # The two kinds of block name their convolutions in two ways.
    parts = ("0", "1", "2") if config.is_bottleneck else ("layer_0", "layer_1")
    convolutions = tuple(
        rule
        for number, part in enumerate(parts, 1)
        for rule in (
            Rule(f"params/{block}layer/{part}/convolution/kernel", f"{_BLOCK}conv{number}/kernel"),
            *_flax_norm(f"{block}layer/{part}/normalization", f"{_BLOCK}norm{number}"),
        )
    )
    return (
        Rule(f"params/{backbone}embedder/embedder/convolution/kernel", "stem/conv/kernel"),
        *_flax_norm(f"{backbone}embedder/embedder/normalization", "stem/norm"),
        *convolutions,
        Rule(f"params/{block}shortcut/convolution/kernel", f"{_BLOCK}shortcut/kernel"),
        *_flax_norm(f"{block}shortcut/normalization", f"{_BLOCK}shortcut_norm"),
        Rule("params/classifier/1/kernel", "head/linear/kernel"),
        Rule("params/classifier/1/bias", "head/linear/bias"),
    )


def _flax(name: str, description: str, backbone: str) -> Layout:
    return Layout(
        name=name,
        description=description,
        family=ResNetConfig,
        anchors=(
            f"params/{backbone}embedder/embedder/convolution/kernel",
            f"batch_stats/{backbone}embedder/embedder/normalization/mean",
        ),
        rules=lambda config: _flax_rules(config, backbone),
    )


# transformers 4, models/resnet/modeling_flax_resnet.py. The collections stand before the name of the backbone, so it
# is no prefix.
FLAX = _flax("hf-flax-resnet", "Hugging Face's FlaxResNetForImageClassification", "resnet/")
FLAX_BACKBONE = _flax("hf-flax-resnet-backbone", "Hugging Face's FlaxResNetModel", "")

LAYOUTS = (TORCHVISION, HUGGING_FACE, FLAX, FLAX_BACKBONE)

_NUMBERS = ("depths", "hidden_sizes", "embedding_size", "num_channels", "layer_type")
_LAYER_TYPES = {"bottleneck": True, "basic": False}


def from_hugging_face(config: Mapping[str, Any]) -> ResNetConfig:
    """Return the architecture that a config.json of model_type "resnet" describes, without a classifier.

    Args:
        config: its values, those included that are the defaults of transformers.

    Raises:
        ValueError: values are missing, or ask for what the net cannot do; all in one message.
    """
    problems = [f"{name} is missing" for name in _NUMBERS if name not in config]
    if config.get("hidden_act") != "relu":
        problems.append(f"hidden_act = {config.get('hidden_act')!r} (wanted 'relu')")
    if config.get("layer_type", "basic") not in _LAYER_TYPES:
        problems.append(f"layer_type = {config['layer_type']!r} (wanted one of {', '.join(_LAYER_TYPES)})")
    if problems:
        raise ValueError("config.json of model_type 'resnet': not supported: " + "; ".join(problems))
    is_bottleneck = _LAYER_TYPES[config["layer_type"]]
    return ResNetConfig(
        depths=tuple(config["depths"]),
        widths=tuple(config["hidden_sizes"]),
        stem_width=config["embedding_size"],
        is_bottleneck=is_bottleneck,
        is_first_halved=bool(config.get("downsample_in_first_stage", False)),
        is_halved_early=is_bottleneck and bool(config.get("downsample_in_bottleneck", False)),
        in_channels=config["num_channels"],
    )


def to_hugging_face(architecture: ResNetConfig) -> dict[str, Any]:
    """Return the config.json of an architecture, as plain values.

    Raises:
        ValueError: transformers has no such net; all reasons in one message.
    """
    problems = []
    if (architecture.groups, architecture.width_per_group) != (1, 64):
        problems.append("groups and widened bottlenecks (ResNeXt, wide ResNet)")
    if architecture.norm_epsilon != 1e-5:
        problems.append(f"norm_epsilon {architecture.norm_epsilon}, which is 1e-5 there")
    if problems:
        raise ValueError(f"transformers' ResNet has no {' and no '.join(problems)}; export to timm or torchvision")
    kinds = {is_bottleneck: name for name, is_bottleneck in _LAYER_TYPES.items()}
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification" if architecture.num_classes else "ResNetModel"],
        "depths": list(architecture.depths),
        "hidden_sizes": list(architecture.widths),
        "embedding_size": architecture.stem_width,
        "layer_type": kinds[architecture.is_bottleneck],
        "hidden_act": "relu",
        "downsample_in_first_stage": architecture.is_first_halved,
        "downsample_in_bottleneck": architecture.is_halved_early,
        "num_channels": architecture.in_channels,
    }
