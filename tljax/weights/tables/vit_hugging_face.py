"""Layouts of Vision Transformers in Hugging Face transformers (source: the files that its models are published in)."""

from dataclasses import replace

from tljax.models.transformer import SWIGLU
from tljax.models.vit import VitConfig
from tljax.weights.layout import CONV, LINEAR, Layout, Rule

_OURS = "block_{layer:02d}/"
_QKV = ("query", "key", "value")
# One linear layer that does the work of several: the rows of each, one after the other.
_FUSED, _FUSED_BIAS = "(parts o) i -> parts i o", "(parts o) -> parts o"


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/kernel", LINEAR), Rule(f"{source}.bias", f"{target}/bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _patch(source: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", "embed/patch/kernel", CONV), Rule(f"{source}.bias", "embed/patch/bias")


def _attention(block: str) -> tuple[Rule, ...]:
    """Map the attention of all but CLIP and SigLIP."""
    return (
        *_linear(f"{block}attention.output.dense", f"{_OURS}attn/out"),
        *(rule for name in _QKV for rule in _linear(f"{block}attention.attention.{name}", f"{_OURS}attn/{name}")),
    )


_BLOCK = "encoder.layer.{layer}."
_TOKENS = (
    Rule("embeddings.cls_token", "embed/cls_token"),
    Rule("embeddings.distillation_token", "embed/distillation_token"),
    Rule("embeddings.register_tokens", "embed/registers"),
    Rule("embeddings.position_embeddings", "embed/pos_embed"),
    *_patch("embeddings.patch_embeddings.projection"),
)
_VIT_RULES = (
    *_TOKENS,
    *_norm(f"{_BLOCK}layernorm_before", f"{_OURS}norm1"),
    *_attention(_BLOCK),
    *_norm(f"{_BLOCK}layernorm_after", f"{_OURS}norm2"),
    *_linear(f"{_BLOCK}intermediate.dense", f"{_OURS}mlp/fc1"),
    *_linear(f"{_BLOCK}output.dense", f"{_OURS}mlp/fc2"),
)
_VIT_ANCHORS = (
    "embeddings.cls_token",
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.attention.attention.query.weight",
    "encoder.layer.0.layernorm_before.weight",
)
# A tanh layer over the class token: ForImageClassification does not use it, and its weights are often random.
_POOLER = r"pooler\.dense\..+"
# Of masked-image pretraining.
_MASK_TOKEN = r"embeddings\.mask_token"


def _vit_rules(config: VitConfig) -> tuple[Rule, ...]:
    # None of these models pools before it normalises.
    return _VIT_RULES if config.is_norm_after_pooling else (*_VIT_RULES, *_norm("layernorm", "norm"))


def _vit_published(config: VitConfig) -> VitConfig:
    return replace(config, norm_epsilon=1e-12)


# models/vit/modeling_vit.py: ViTModel (DINO's too) and ViTForImageClassification; models/vit_mae/modeling_vit_mae.py:
# ViTMAEModel and ViTMAEForPreTraining.
VIT = Layout(
    name="hf-vit",
    description="Hugging Face's ViTModel, ViTForImageClassification and ViTMAEForPreTraining: ViT, DINO, MAE",
    family=VitConfig,
    prefixes=("", "vit."),
    anchors=_VIT_ANCHORS,
    absent=("embeddings.distillation_token",),
    rules=lambda config: (*_vit_rules(config), *_linear("classifier", "head/linear")),
    # MAE's decoder paints the masked patches in pretraining.
    ignored=(_POOLER, _MASK_TOKEN, r"decoder\..+"),
    published=_vit_published,
)


def _deit_rules(config: VitConfig) -> tuple[Rule, ...]:
    if config.pooling != "cls_distillation":
        return (*_vit_rules(config), *_linear("classifier", "head/linear"))
    heads = (*_linear("cls_classifier", "head/linear"), *_linear("distillation_classifier", "head/distillation"))
    return (*_vit_rules(config), *heads)


# models/deit/modeling_deit.py: DeiTModel, and DeiTForImageClassification with and without its teacher's token.
DEIT = Layout(
    name="hf-deit",
    description="Hugging Face's DeiTModel, DeiTForImageClassification and DeiTForImageClassificationWithTeacher",
    family=VitConfig,
    prefixes=("", "deit."),
    anchors=(*_VIT_ANCHORS, "embeddings.distillation_token"),
    rules=_deit_rules,
    ignored=(_POOLER, _MASK_TOKEN),
    published=_vit_published,
)


def _dinov2_rules(config: VitConfig) -> tuple[Rule, ...]:
    if config.activation == SWIGLU:
        gated = tuple(f"{_OURS}mlp/{part}" for part in ("gate", "fc1"))
        mlp = (
            Rule(f"{_BLOCK}mlp.weights_in.weight", tuple(f"{part}/kernel" for part in gated), _FUSED),
            Rule(f"{_BLOCK}mlp.weights_in.bias", tuple(f"{part}/bias" for part in gated), _FUSED_BIAS),
            *_linear(f"{_BLOCK}mlp.weights_out", f"{_OURS}mlp/fc2"),
        )
    else:
        mlp = (*_linear(f"{_BLOCK}mlp.fc1", f"{_OURS}mlp/fc1"), *_linear(f"{_BLOCK}mlp.fc2", f"{_OURS}mlp/fc2"))
    return (
        *_TOKENS,
        *_norm(f"{_BLOCK}norm1", f"{_OURS}norm1"),
        *_attention(_BLOCK),
        Rule(f"{_BLOCK}layer_scale1.lambda1", f"{_OURS}layer_scale1/scale"),
        *_norm(f"{_BLOCK}norm2", f"{_OURS}norm2"),
        *mlp,
        Rule(f"{_BLOCK}layer_scale2.lambda1", f"{_OURS}layer_scale2/scale"),
        *_norm("layernorm", "norm"),
        *_linear("classifier", "head/linear"),
    )


# models/dinov2/modeling_dinov2.py and models/dinov2_with_registers/modeling_dinov2_with_registers.py.
DINOV2 = Layout(
    name="hf-dinov2",
    description="Hugging Face's Dinov2Model and Dinov2ForImageClassification, with and without registers",
    family=VitConfig,
    prefixes=("", "dinov2.", "dinov2_with_registers.", "backbone."),
    anchors=(
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.norm1.weight",
        "encoder.layer.0.layer_scale1.lambda1",
    ),
    rules=_dinov2_rules,
    ignored=(_MASK_TOKEN,),
)

_CLIP_BLOCK = "encoder.layers.{layer}."


def _tower(block: str) -> tuple[Rule, ...]:
    """Map what the image towers of CLIP and SigLIP share."""
    short = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return (
        *_patch("embeddings.patch_embedding"),
        Rule("embeddings.position_embedding.weight", "embed/pos_embed", "n d -> 1 n d"),
        *_norm(f"{block}layer_norm1", f"{_OURS}norm1"),
        *(rule for ours, name in short.items() for rule in _linear(f"{block}self_attn.{name}", f"{_OURS}attn/{ours}")),
        *_norm(f"{block}layer_norm2", f"{_OURS}norm2"),
        *_linear(f"{block}mlp.fc1", f"{_OURS}mlp/fc1"),
        *_linear(f"{block}mlp.fc2", f"{_OURS}mlp/fc2"),
        *_norm("post_layernorm", "norm"),
    )


# The text tower and what joins the two; a buffer that counts the positions.
_TEXT = (r"text_model\..+", r"text_projection\..+", "logit_scale", "logit_bias", r"embeddings\.position_ids")

# models/clip/modeling_clip.py: CLIPVisionModel, CLIPVisionModelWithProjection and CLIPModel.
CLIP = Layout(
    name="hf-clip",
    description="the image tower of Hugging Face's CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection",
    family=VitConfig,
    prefixes=("vision_model.", ""),
    anchors=("embeddings.class_embedding", "embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
    rules=lambda config: (
        Rule("embeddings.class_embedding", "embed/cls_token", "d -> 1 1 d"),
        *_norm("pre_layrnorm", "embed/norm"),
        *_tower(_CLIP_BLOCK),
        Rule("visual_projection.weight", "head/linear/kernel", LINEAR),
    ),
    ignored=_TEXT,
)


def _siglip_rules(config: VitConfig) -> tuple[Rule, ...]:
    parts = tuple(f"pool/attn/{name}" for name in _QKV)
    pool = (
        Rule("head.probe", "pool/probe"),
        Rule("head.attention.in_proj_weight", tuple(f"{part}/kernel" for part in parts), _FUSED),
        Rule("head.attention.in_proj_bias", tuple(f"{part}/bias" for part in parts), _FUSED_BIAS),
        *_linear("head.attention.out_proj", "pool/attn/out"),
        *_norm("head.layernorm", "pool/norm"),
        *_linear("head.mlp.fc1", "pool/mlp/fc1"),
        *_linear("head.mlp.fc2", "pool/mlp/fc2"),
    )
    has_pool = config.pooling == "attention"
    return (*_tower(_CLIP_BLOCK), *(pool if has_pool else ()), *_linear("classifier", "head/linear"))


# models/siglip/modeling_siglip.py: SiglipVisionModel, SiglipForImageClassification and SiglipModel.
SIGLIP = Layout(
    name="hf-siglip",
    description="the image tower of Hugging Face's SiglipModel, SiglipVisionModel and SiglipForImageClassification",
    family=VitConfig,
    prefixes=("vision_model.", ""),
    anchors=("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight", "post_layernorm.weight"),
    absent=("embeddings.class_embedding",),
    rules=_siglip_rules,
    # SiglipForImageClassification carries the attention pool and averages the tokens instead.
    ignored=(*_TEXT, r"head\.(probe|attention|layernorm|mlp).*"),
)

LAYOUTS = (VIT, DEIT, DINOV2, CLIP, SIGLIP)
