"""Between `VitConfig` and the name and arguments with which timm makes the same net."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tljax.models import VitConfig
from tljax.models.transformer import ACTIVATIONS, CLS_DISTILLATION, SWIGLU
from tljax.models.vit import ATTENTION
from tljax.paths import did_you_mean
from tljax.weights.tables.vit_timm_names import TIMM_NAMES

# timm's argument: our field of the same meaning.
_SAME = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "class_token": "has_class_token",
    "reg_tokens": "num_registers",
}
_POOLINGS = {"token": "cls", "avg": "mean", "map": ATTENTION}
_CONVERTED = (
    "img_size", "mlp_ratio", "init_values", "no_embed_class", "pre_norm", "act_layer", "global_pool", "fc_norm",
    "pool_include_prefix",
)  # fmt: skip
# What our nets are; timm has them otherwise too.
_FIXED: dict[str, tuple[Any, ...]] = {
    "qkv_bias": (True,), "qk_norm": (False,), "scale_attn_norm": (False,), "scale_mlp_norm": (False,),
    "proj_bias": (True,), "pos_embed": ("learn",), "final_norm": (True,), "dynamic_img_pad": (False,),
    "attn_layer": ("", "attn"), "use_naflex": (False,),
}  # fmt: skip
# These change how a net is trained or started, or which other sizes it takes, and nothing that it computes.
_IDLE = frozenset({
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "weight_init", "fix_init", "dynamic_img_size",
})  # fmt: skip


def timm_architecture(name: str, model_args: Mapping[str, Any]) -> VitConfig:
    """Return the net that `timm.create_model(name, **model_args)` makes, without classes unless the arguments say so.

    Args:
        name: "architecture" of timm's config.json, without a tag.
        model_args: of the same file; None stands for timm's default, as in timm.

    Raises:
        ValueError: the name is not known, or an argument asks for what `VitConfig` has not; all in one message.
    """
    if name not in TIMM_NAMES:
        raise ValueError(
            f"timm's architecture {name!r} is not known{did_you_mean(name, TIMM_NAMES)}; if it is a plain Vision "
            "Transformer, describe it: architecture=VitConfig(...)"
        )
    known = TIMM_NAMES[name]
    given = {key: value for key, value in model_args.items() if value is not None}
    problems = _refused(known, given)
    if problems:
        raise ValueError(f"timm's {name!r} with these arguments is no VitConfig:\n  " + "\n  ".join(problems))
    config = replace(known, **_changes(known, given))
    problems = _refused_together(config, given)
    if problems:
        raise ValueError(f"timm's {name!r} with these arguments is no VitConfig:\n  " + "\n  ".join(problems))
    return config


def timm_name(config: VitConfig) -> tuple[str, dict[str, Any]]:
    """Return a name and arguments with which `timm.create_model` makes a net: the name that needs the fewest.

    The image size and the number of classes are always among the arguments, since timm takes its own from the
    preprocessing that comes with weights.

    Raises:
        ValueError: timm has no such net; all that is in the way in one message.
    """
    problems = _inexpressible(config)
    found = {name: _arguments(known, config) for name, known in TIMM_NAMES.items() if _is_reachable(known, config)}
    if not found:
        problems.append(
            f"no net with activation {config.activation!r}, norm_epsilon {config.norm_epsilon} and "
            f"has_distillation_token {config.has_distillation_token}"
        )
    if problems:
        raise ValueError("timm's VisionTransformer cannot be this net; it has\n  " + "\n  ".join(problems))
    name = min(found, key=lambda name: (len(found[name]), TIMM_NAMES[name].image_size != config.image_size))
    return name, found[name]


def _refused(known: VitConfig, given: Mapping[str, Any]) -> list[str]:
    """List the arguments that no net of ours has, each by itself."""
    problems = []
    names = (*_SAME, *_CONVERTED, *_FIXED, *_IDLE)
    for key, value in given.items():
        if key not in names:
            problems.append(f"argument {key!r} is not known{did_you_mean(key, names)}")
        elif key in _FIXED and value not in _FIXED[key]:
            problems.append(f"{key}={value!r}: ours are built with {_FIXED[key][0]!r}")
    activations = ("silu", "swish") if known.activation == SWIGLU else tuple(ACTIVATIONS)
    pools = ("token",) if known.has_distillation_token else tuple(_POOLINGS)
    for key, can in (("act_layer", activations), ("global_pool", pools)):
        if given.get(key, can[0]) not in can:
            problems.append(f"{key}={given[key]!r}: this net can have {', '.join(map(repr, can))}")
    if "embed_dim" in given and "mlp_ratio" not in given and known.mlp_width is not None:
        problems.append("embed_dim without mlp_ratio: give both, the MLP of this net is not four times as wide")
    return problems


def _changes(known: VitConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {ours: given[theirs] for theirs, ours in _SAME.items() if theirs in given}
    if isinstance(given.get("patch_size"), list | tuple) and len(set(given["patch_size"])) == 1:
        changes["patch_size"] = given["patch_size"][0]
    if "img_size" in given:
        size = given["img_size"]
        changes["image_size"] = tuple(size) if isinstance(size, list) else size
    if "mlp_ratio" in given:
        hidden_width = int(changes.get("width", known.width) * given["mlp_ratio"])
        changes["mlp_width"] = hidden_width // 2 if known.activation == SWIGLU else hidden_width
    if "init_values" in given:
        changes["use_layer_scale"] = bool(given["init_values"])
    if "no_embed_class" in given:
        changes["has_prefix_positions"] = not given["no_embed_class"]
    if "pre_norm" in given:
        changes |= {"has_embed_norm": given["pre_norm"], "has_patch_bias": not given["pre_norm"]}
    if "act_layer" in given and known.activation != SWIGLU:
        changes["activation"] = given["act_layer"]
    if known.has_distillation_token:
        return changes
    changes["pooling"] = _POOLINGS[given["global_pool"]] if "global_pool" in given else known.pooling
    # timm's names of nets that average without it say so.
    norms_first = known.pooling == "mean" and not known.is_norm_after_pooling
    changes["is_norm_after_pooling"] = given.get("fc_norm", changes["pooling"] == "mean" and not norms_first)
    return changes


def _refused_together(config: VitConfig, given: Mapping[str, Any]) -> list[str]:
    problems = []
    if config.num_registers and config.has_prefix_positions:
        problems.append("reg_tokens without no_embed_class: our registers have no positions")
    if config.prefix_tokens and config.pooling in (ATTENTION, "mean"):
        reads_all = config.pooling == ATTENTION
        if given.get("pool_include_prefix", False) != reads_all:
            problems.append(f"pool_include_prefix={not reads_all}: our pooling {config.pooling!r} has {reads_all}")
    return problems


def _is_reachable(known: VitConfig, config: VitConfig) -> bool:
    """Tell whether arguments of plain values lead from a net of timm's to ours: these three have none."""
    return (
        known.norm_epsilon == config.norm_epsilon
        and known.has_distillation_token == config.has_distillation_token
        and (known.activation == SWIGLU) == (config.activation == SWIGLU)
    )


def _arguments(known: VitConfig, config: VitConfig) -> dict[str, Any]:
    different = {theirs for theirs, ours in _SAME.items() if getattr(known, ours) != getattr(config, ours)}
    arguments: dict[str, Any] = {"img_size": config.image_size, "num_classes": config.num_classes}
    arguments |= {theirs: getattr(config, _SAME[theirs]) for theirs in _SAME if theirs in different}
    same_ratio = known.mlp_width is None and config.hidden_width == 4 * config.width
    if not same_ratio and (known.width, known.hidden_width) != (config.width, config.hidden_width):
        arguments["mlp_ratio"] = _ratio(config.hidden_width * (2 if config.activation == SWIGLU else 1), config.width)
    if known.use_layer_scale != config.use_layer_scale:
        arguments["init_values"] = 1e-5 if config.use_layer_scale else 0.0
    # timm gives positions to all prefix tokens or to none.
    if _has_positions(known) != _has_positions(config):
        arguments["no_embed_class"] = not _has_positions(config)
    if known.has_embed_norm != config.has_embed_norm:
        arguments["pre_norm"] = config.has_embed_norm
    if known.activation != config.activation:
        arguments["act_layer"] = config.activation
    pooling = (config.pooling, config.is_norm_after_pooling)
    if (known.pooling, known.is_norm_after_pooling) != pooling:
        names = {ours: theirs for theirs, ours in _POOLINGS.items()}
        arguments |= {"global_pool": names.get(config.pooling), "fc_norm": config.is_norm_after_pooling}
    if config.pooling == ATTENTION and config.prefix_tokens:
        arguments["pool_include_prefix"] = True
    return arguments


def _has_positions(config: VitConfig) -> bool:
    return config.has_prefix_positions and not config.num_registers


def _ratio(hidden_width: int, width: int) -> float:
    """Return the ratio from which timm's int(width * ratio) gives the hidden width."""
    exact = hidden_width / width
    return exact if int(width * exact) == hidden_width else (hidden_width + 0.5) / width


def _inexpressible(config: VitConfig) -> list[str]:
    problems = []
    if config.has_patch_bias == config.has_embed_norm:
        problems.append("a bias of the patches exactly where the embedded tokens are not normalised")
    if config.representation_width:
        problems.append("no representation_width: drop the stage 'pre_logits'")
    if config.num_classes and not config.has_head_bias:
        problems.append("a classifier with a bias: set has_head_bias, with a bias of zeros")
    if config.pooling == "cls_mean":
        problems.append("no pooling 'cls_mean': train a classifier with 'cls' or 'mean'")
    if config.num_registers and config.positioned_prefix_tokens:
        problems.append(
            "no class token with a position beside registers without: add the position to the token, and set "
            "has_prefix_positions=False"
        )
    if config.has_distillation_token:
        if config.pooling != CLS_DISTILLATION:
            problems.append(f"pooling {CLS_DISTILLATION!r} wherever there is a distillation token")
        if config.num_registers or not config.has_prefix_positions:
            problems.append("neither registers nor tokens without positions beside a distillation token")
    return problems
