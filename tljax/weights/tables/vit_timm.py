"""Layouts of Vision Transformers in timm's names: timm's own, and those of DeiT, MAE, DINO and DINOv2's authors."""

from collections.abc import Callable
from dataclasses import replace

from tljax.models import VitConfig
from tljax.models.transformer import SWIGLU
from tljax.weights.layout import CONV, LINEAR, Layout, Rule
from tljax.weights.tables.vit_timm_arguments import timm_architecture, timm_name

__all__ = ["DEIT3", "LAYOUTS", "MAE", "META_DINOV2", "META_DINOV2_CHUNKED", "TIMM", "timm_architecture", "timm_name"]

_BLOCKS = ("blocks.{layer}", "block_{layer:02d}")
_META_GATED = ("w12", "w3")
_QKV = ("query", "key", "value")
# One linear layer that does the work of several: the rows of each, one after the other.
_FUSED, _FUSED_BIAS = "(parts o) i -> parts i o", "(parts o) -> parts o"
# FSDP wants the blocks in groups; dinov2/configs/train/vit{l,g}14.yaml make four.
_CHUNKS = 4


def _linear(source: str, target: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    """Map a linear layer, to several of ours where one does their work."""
    if isinstance(target, str):
        return (
            Rule(f"{source}.weight", f"{target}/kernel", LINEAR),
            Rule(f"{source}.bias", f"{target}/bias"),
        )
    return (
        Rule(f"{source}.weight", tuple(f"{part}/kernel" for part in target), _FUSED),
        Rule(f"{source}.bias", tuple(f"{part}/bias" for part in target), _FUSED_BIAS),
    )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _block_rules(
    config: VitConfig, source: str, target: str, *, gated: tuple[str, str] = ("fc1", "fc2"), scale: str = "ls{}.gamma"
) -> tuple[Rule, ...]:
    """Map a block; `gated` names the two linear layers of a SwiGLU, the first of which does the work of two."""
    first, second = gated if config.activation == SWIGLU else ("fc1", "fc2")
    into = (f"{target}/mlp/gate", f"{target}/mlp/fc1") if config.activation == SWIGLU else f"{target}/mlp/fc1"
    return (
        *_norm(f"{source}.norm1", f"{target}/norm1"),
        *_linear(f"{source}.attn.qkv", tuple(f"{target}/attn/{part}" for part in _QKV)),
        *_linear(f"{source}.attn.proj", f"{target}/attn/out"),
        Rule(f"{source}.{scale.format(1)}", f"{target}/layer_scale1/scale"),
        *_norm(f"{source}.norm2", f"{target}/norm2"),
        *_linear(f"{source}.mlp.{first}", into),
        *_linear(f"{source}.mlp.{second}", f"{target}/mlp/fc2"),
        Rule(f"{source}.{scale.format(2)}", f"{target}/layer_scale2/scale"),
    )


def _ends(config: VitConfig, registers: str) -> tuple[Rule, ...]:
    """Map what is before the blocks and after them."""
    return (
        Rule("cls_token", "embed/cls_token"),
        Rule(registers, "embed/registers"),
        Rule("pos_embed", "embed/pos_embed"),
        Rule("patch_embed.proj.weight", "embed/patch/kernel", CONV),
        Rule("patch_embed.proj.bias", "embed/patch/bias"),
        *_norm("fc_norm" if config.is_norm_after_pooling else "norm", "norm"),
    )


def _timm_rules(config: VitConfig) -> tuple[Rule, ...]:
    return (*_timm_ends(config), *_block_rules(config, *_BLOCKS))


def _deit3_rules(config: VitConfig) -> tuple[Rule, ...]:
    return (*_timm_ends(config), *_block_rules(config, *_BLOCKS, scale="gamma_{}"))


def _timm_ends(config: VitConfig) -> tuple[Rule, ...]:
    return (
        *_ends(config, "reg_token"),
        Rule("dist_token", "embed/distillation_token"),
        *_norm("norm_pre", "embed/norm"),
        Rule("attn_pool.latent", "pool/probe"),
        *_linear("attn_pool.q", "pool/attn/query"),
        *_linear("attn_pool.kv", ("pool/attn/key", "pool/attn/value")),
        *_linear("attn_pool.proj", "pool/attn/out"),
        *_norm("attn_pool.norm", "pool/norm"),
        *_linear("attn_pool.mlp.fc1", "pool/mlp/fc1"),
        *_linear("attn_pool.mlp.fc2", "pool/mlp/fc2"),
        # Of releases before 0.6.
        *_linear("pre_logits.fc", "pre_logits/linear"),
        *_linear("head", "head/linear"),
        *_linear("head_dist", "head/distillation"),
    )


def _meta_rules(blocks: Callable[[VitConfig], tuple[Rule, ...]]) -> Callable[[VitConfig], tuple[Rule, ...]]:
    def rules(config: VitConfig) -> tuple[Rule, ...]:
        # The head is that of the hub's dinov2_*_lc with one layer.
        return (*_ends(config, "register_tokens"), *blocks(config), *_linear("linear_head", "head/linear"))

    return rules


def _meta_blocks(config: VitConfig) -> tuple[Rule, ...]:
    return _block_rules(config, *_BLOCKS, gated=_META_GATED)


def _meta_chunked_blocks(config: VitConfig) -> tuple[Rule, ...]:
    """Name every block: the chunk that it is in follows from the depth."""
    size = max(config.depth // _CHUNKS, 1)
    return tuple(
        rule
        for layer in range(config.depth)
        for rule in _block_rules(config, f"blocks.{layer // size}.{layer}", f"block_{layer:02d}", gated=_META_GATED)
    )


_ANCHORS = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight")
_IGNORED = (
    # The state of a training run: only the params are ours.
    r"(optimizer|lr_scheduler|scaler|loss_scaler|amp_scaler|fp16_scaler)\..*",
    # The running average that a run kept beside the params it trained.
    r"(model_ema|state_dict_ema)\..*",
    # DINO and DINOv2 publish the teacher's backbone; these are the student, and heads and centres of the loss.
    r"(teacher|student|dino_loss)\..*",
)


def _timm_published(config: VitConfig) -> VitConfig:
    """Give DINOv2's class token no position beside registers, and SigLIP the erf of timm's names for it."""
    if config.num_registers:
        return replace(config, has_prefix_positions=False)
    return config if config.has_class_token else replace(config, activation="gelu")


# timm/models/vision_transformer.py and deit.py; the authors' DeiT ("model."), DINO (also "teacher.backbone."), encoders
# and fine-tuned nets of MAE ("model."), and image towers of OpenCLIP that are timm's ("visual.trunk.").
TIMM = Layout(
    name="timm-vit",
    description="timm's VisionTransformer and VisionTransformerDistilled, or the authors' DeiT, DINO or MAE",
    family=VitConfig,
    prefixes=(
        "", "module.", "model.", "state_dict.", "model.module.", "state_dict.module.", "teacher.backbone.",
        "visual.trunk.",
    ),
    anchors=_ANCHORS,
    # Of MAE with its decoder, of Meta's DINOv2, and of DeiT III.
    absent=("mask_token", "register_tokens", "blocks.0.mlp.w12.weight", "blocks.0.gamma_1"),
    rules=_timm_rules,
    ignored=(
        *_IGNORED,
        # OpenCLIP's text tower, and its loss.
        r"text\..*",
        r"logit_(scale|bias)",
    ),
    positions="antialiased_cubic",
    published=_timm_published,
)  # fmt: skip

# deit/models_v2.py.
DEIT3 = Layout(
    name="meta-deit3",
    description="the authors' DeiT III",
    family=VitConfig,
    prefixes=("", "model.", "module."),
    anchors=(*_ANCHORS, "blocks.0.gamma_1"),
    rules=_deit3_rules,
    ignored=_IGNORED,
)

# mae/models_mae.py.
MAE = Layout(
    name="meta-mae",
    description="the authors' masked autoencoder, with its decoder",
    family=VitConfig,
    prefixes=("", "model.", "module.", "model.module."),
    anchors=(*_ANCHORS, "mask_token", "decoder_embed.weight"),
    rules=_timm_rules,
    ignored=(
        *_IGNORED,
        # Used by pretraining only.
        r"mask_token",
        r"decoder_.*",
    ),
)

_META_PREFIXES = ("", "backbone.", "teacher.backbone.", "model.", "module.")
# Used by pretraining only.
_META_IGNORED = (*_IGNORED, r"mask_token")

# dinov2/models/vision_transformer.py.
META_DINOV2 = Layout(
    name="meta-dinov2",
    description="Meta's DINOv2, with or without registers",
    family=VitConfig,
    prefixes=_META_PREFIXES,
    anchors=(*_ANCHORS, "mask_token", "blocks.0.ls1.gamma"),
    absent=("decoder_embed.weight",),
    rules=_meta_rules(_meta_blocks),
    ignored=_META_IGNORED,
)

# The same, trained with the blocks in chunks.
META_DINOV2_CHUNKED = Layout(
    name="meta-dinov2-chunked",
    description="Meta's DINOv2 as its training writes it, with the blocks in four chunks",
    family=VitConfig,
    prefixes=_META_PREFIXES,
    anchors=("patch_embed.proj.weight", "mask_token", "blocks.0.0.norm1.weight", "blocks.0.0.attn.qkv.weight"),
    rules=_meta_rules(_meta_chunked_blocks),
    ignored=_META_IGNORED,
)

LAYOUTS = (TIMM, DEIT3, MAE, META_DINOV2, META_DINOV2_CHUNKED)
