"""Layouts of Hugging Face transformers (source: the state dicts of its PyTorch modules)."""

from tljax.weights.rules import Rule, Table

_LINEAR = (1, 0)  # torch keeps [out in]
_CONV = (2, 3, 1, 0)  # torch keeps [out in h w]
_BLOCK = "encoder.layer.{layer}."
_OURS = "block_{layer:02d}/"

# transformers/models/dinov2/modeling_dinov2.py: Dinov2Model and Dinov2ForImageClassification.
DINOV2 = Table(
    name="Hugging Face DINOv2",
    prefixes=("", "dinov2.", "backbone."),
    anchor="embeddings.patch_embeddings.projection.weight",
    rules=(
        Rule("embeddings.cls_token", "embed/cls_token"),
        Rule("embeddings.position_embeddings", "embed/pos_embed"),
        Rule("embeddings.patch_embeddings.projection.weight", "embed/patch/kernel", _CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "embed/patch/bias"),
        Rule(_BLOCK + "norm1.weight", _OURS + "norm1/scale"),
        Rule(_BLOCK + "norm1.bias", _OURS + "norm1/bias"),
        # Before the projections, which on the way back would take "out" for one of theirs.
        Rule(_BLOCK + "attention.output.dense.weight", _OURS + "attn/out/kernel", _LINEAR),
        Rule(_BLOCK + "attention.output.dense.bias", _OURS + "attn/out/bias"),
        Rule(_BLOCK + "attention.attention.{projection}.weight", _OURS + "attn/{projection}/kernel", _LINEAR),
        Rule(_BLOCK + "attention.attention.{projection}.bias", _OURS + "attn/{projection}/bias"),
        Rule(_BLOCK + "layer_scale1.lambda1", _OURS + "layer_scale1/scale"),
        Rule(_BLOCK + "norm2.weight", _OURS + "norm2/scale"),
        Rule(_BLOCK + "norm2.bias", _OURS + "norm2/bias"),
        Rule(_BLOCK + "mlp.{linear}.weight", _OURS + "mlp/{linear}/kernel", _LINEAR),
        Rule(_BLOCK + "mlp.{linear}.bias", _OURS + "mlp/{linear}/bias"),
        Rule(_BLOCK + "layer_scale2.lambda1", _OURS + "layer_scale2/scale"),
        Rule("layernorm.weight", "norm/scale"),
        Rule("layernorm.bias", "norm/bias"),
        Rule("classifier.weight", "head/linear/kernel", _LINEAR),
        Rule("classifier.bias", "head/linear/bias"),
    ),
    # Used by masked-image pretraining only.
    ignored=(r"embeddings\.mask_token",),
)
