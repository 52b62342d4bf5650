"""Layouts of Google's Vision Transformers as npz: ViT and AugReg, and big_vision with SigLIP.

The files say nothing of the activation. Google's code computes the tanh approximation of GELU ("gelu_tanh"); timm and
Hugging Face compute the exact one ("gelu") from the same weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tljax.models import VitConfig
from tljax.models.vit import ATTENTION
from tljax.weights.layout import Layout, Rule

_EPSILON = 1e-6  # flax's


@dataclass(frozen=True)
class _Numbers:
    """What flax appended to the names of a block's layers."""

    norm2: int
    mlp: int
    attention: int


# Early flax numbered all layers of a block together, later ones those of each class.
_TOGETHER = _Numbers(norm2=2, mlp=3, attention=1)
_BY_CLASS = _Numbers(norm2=1, mlp=0, attention=0)


def _attention(source: str, target: str, stack: str = "") -> tuple[Rule, ...]:
    """Map flax's MultiHeadDotProductAttention; `stack` is the axis of layers before all others."""
    return (
        Rule(f"{source}/out/kernel", f"{target}/out/kernel", f"{stack}heads e o -> {stack}(heads e) o"),
        Rule(f"{source}/out/bias", f"{target}/out/bias"),
        # Behind those of "out", which "{part}" would match too.
        Rule(f"{source}/{{part}}/kernel", f"{target}/{{part}}/kernel", f"{stack}i heads e -> {stack}i (heads e)"),
        Rule(f"{source}/{{part}}/bias", f"{target}/{{part}}/bias", f"{stack}heads e -> {stack}(heads e)"),
    )


def _mlp(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}/Dense_0/{{param}}", f"{target}/fc1/{{param}}"),
        Rule(f"{source}/Dense_1/{{param}}", f"{target}/fc2/{{param}}"),
    )


def _block(source: str, numbers: _Numbers, stack: str = "") -> tuple[Rule, ...]:
    target = "block_{layer:02d}"
    return (
        Rule(f"{source}/LayerNorm_0/{{param}}", f"{target}/norm1/{{param}}"),
        *_attention(f"{source}/MultiHeadDotProductAttention_{numbers.attention}", f"{target}/attn", stack),
        Rule(f"{source}/LayerNorm_{numbers.norm2}/{{param}}", f"{target}/norm2/{{param}}"),
        *_mlp(f"{source}/MlpBlock_{numbers.mlp}", f"{target}/mlp"),
    )


def _ends(config: VitConfig, positions: str) -> tuple[Rule, ...]:
    """Map what is before the blocks and after them."""
    # These projects normalise every token: a net that pools first is none of theirs.
    norm = () if config.is_norm_after_pooling else (Rule("Transformer/encoder_norm/{param}", "norm/{param}"),)
    return (
        Rule("cls", "embed/cls_token"),
        Rule("embedding/{param}", "embed/patch/{param}"),
        Rule(positions, "embed/pos_embed"),
        *norm,
        Rule("pre_logits/{param}", "pre_logits/linear/{param}"),
        Rule("head/{param}", "head/linear/{param}"),
    )


def _augreg_rules(config: VitConfig) -> tuple[Rule, ...]:
    positions = "Transformer/posembed_input/pos_embedding"
    return (*_ends(config, positions), *_block("Transformer/encoderblock_{layer}", _TOGETHER))


def _big_vision_rules(config: VitConfig) -> tuple[Rule, ...]:
    return (*_big_vision_ends(config), *_block("Transformer/encoderblock_{layer}", _BY_CLASS))


def _scanned_rules(config: VitConfig) -> tuple[Rule, ...]:
    return (*_big_vision_ends(config), *_block("Transformer/encoderblock", _BY_CLASS, "layers "))


def _big_vision_ends(config: VitConfig) -> tuple[Rule, ...]:
    return (
        *_ends(config, "pos_embedding"),
        Rule("MAPHead_0/probe", "pool/probe"),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attn"),
        Rule("MAPHead_0/LayerNorm_0/{param}", "pool/norm/{param}"),
        *_mlp("MAPHead_0/MlpBlock_0", "pool/mlp"),
    )


def _sizes(config: VitConfig) -> Mapping[str, int]:
    return {"heads": config.num_heads}


# The state of the optimiser.
_OPTIMISER = r"opt/.*"


def _with_tanh(config: VitConfig) -> VitConfig:
    # flax's gelu is approximate unless it is told otherwise, and neither project does.
    return replace(config, activation="gelu_tanh") if config.activation == "gelu" else config


# vision_transformer/vit_jax/models_vit.py, before and after its pre_logits were dropped.
AUGREG = Layout(
    name="augreg-npz",
    description="Google's vision_transformer: ViT and AugReg",
    family=VitConfig,
    prefixes=("", "opt/target/", "params/"),
    anchors=("embedding/kernel", "Transformer/posembed_input/pos_embedding", "Transformer/encoder_norm/scale"),
    rules=_augreg_rules,
    ignored=(_OPTIMISER,),
    positions="zoom",
    published=_with_tanh,
    sizes=_sizes,
)

_BIG_VISION_ANCHORS = ("embedding/kernel", "pos_embedding", "Transformer/encoder_norm/scale")

# big_vision/models/vit.py.
BIG_VISION = Layout(
    name="big-vision-npz",
    description="big_vision's ViT, alone or as the image tower of SigLIP or LiT",
    family=VitConfig,
    prefixes=("", "params/", "params/img/", "img/", "opt/target/"),
    anchors=(*_BIG_VISION_ANCHORS, "Transformer/encoderblock_0/LayerNorm_0/scale"),
    rules=_big_vision_rules,
    ignored=(
        _OPTIMISER,
        # The text tower, and temperature and bias of the loss.
        r"(params/)?txt/.*",
        r"(params/)?[tb]",
    ),
    positions="zoom",
    # The position embeddings are added before the class token is put in front.
    published=lambda config: replace(_with_tanh(config), has_prefix_positions=False),
    sizes=_sizes,
)

# The same, trained with scan=True: each kind of param of all layers is one array.
BIG_VISION_SCANNED = replace(
    BIG_VISION,
    name="big-vision-scanned-npz",
    description="big_vision's ViT with its layers in one array",
    anchors=(*_BIG_VISION_ANCHORS, "Transformer/encoderblock/LayerNorm_0/scale"),
    rules=_scanned_rules,
)

LAYOUTS = (AUGREG, BIG_VISION, BIG_VISION_SCANNED)


def layout_for(config: VitConfig) -> Layout:
    """Return the layout in which Google would publish a net: the first one where its class token has a position.

    Raises:
        ValueError: neither project has such a net; all that is in the way in one message.
    """
    problems = [
        f"no {field}={value!r}"
        for field, value, can in (
            ("activation", config.activation, ("gelu", "gelu_tanh")),
            ("norm_epsilon", config.norm_epsilon, (_EPSILON,)),
            ("has_distillation_token", config.has_distillation_token, (False,)),
            ("num_registers", config.num_registers, (0,)),
            ("has_patch_bias", config.has_patch_bias, (True,)),
            ("has_embed_norm", config.has_embed_norm, (False,)),
            ("use_layer_scale", config.use_layer_scale, (False,)),
            ("is_norm_after_pooling", config.is_norm_after_pooling, (False,)),
            ("has_head_bias", config.has_head_bias or not config.num_classes, (True,)),
            ("pooling", config.pooling, ("cls",) if config.has_class_token else ("mean", ATTENTION)),
        )
        if value not in can
    ]
    if problems:
        raise ValueError("Google's ViT cannot be this net; it has\n  " + "\n  ".join(problems))
    return AUGREG if config.positioned_prefix_tokens else BIG_VISION
