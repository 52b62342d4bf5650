"""The methods of docs/methods.md: what each changes in configs/images.py, what it does, and its paper."""

import functools
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table, or one for each phase.

    Args:
        name: of the method.
        changes: {place in the config: value}, on top of `BASE`.
        text: what it does, in one line.
        papers: arXiv ids, or a name where there is none.
    """

    name: str
    changes: dict[str, Any]
    text: str
    papers: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The changes as a config file would have them."""
        return config_lines(self.changes)


def config_lines(changes: Mapping[str, Any]) -> list[str]:
    """Write changes as a config file would have them."""
    return [f"config.{place} = {_literal(value)}" for place, value in changes.items()]


def change(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> None:
    """Make changes in a config."""
    for place, value in changes.items():
        *sections, key = place.split(".")
        functools.reduce(operator.getitem, sections, config)[key] = value


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_literal(entry)}' for key, entry in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _method(name: str, changes: dict[str, Any], text: str, *papers: str) -> Method:
    return Method(name=name, changes=changes, text=text, papers=papers)


BASE: dict[str, Any] = {"groups": {"freeze": 0}, "finetune.cache": "never"}

_HEAD, _LAST_2 = {"freeze": "head"}, {"freeze": "block_10"}

WHAT_IS_TRAINED = (
    _method("Everything", {"groups": {"freeze": 0}}, "all params at one rate"),
    _method("Linear probe", {"groups": _HEAD}, "a new head on features that stay as they are"),
    _method("Last 2 blocks", {"groups": _LAST_2}, "early stages frozen: no backward pass, no optimizer state"),
    _method("Last 6 blocks", {"groups": {"freeze": "block_06"}}, "the same, half of the net"),
    _method(
        "Last 2 blocks, prefix cached",
        {"groups": _LAST_2, "finetune.cache": "always"},
        "the frozen prefix is computed once for each image and view; steps begin behind it",
    ),
    _method(
        "Rates by group",
        {"groups": {"freeze": 0, "rates": {"body": 0.1, "head": 1.0}}},
        "the pretrained body moves at a tenth of the rate of the new head",
    ),
    _method(
        "Layer decay",
        {"groups": {"freeze": 0, "layer_decay": 0.75}},
        "every layer below the head has 0.75 of the rate of the one above",
        "2003.10555",
    ),
    _method(
        "Discriminative rates",
        {"groups": {"freeze": 0, "lowest_rate": 0.01}},
        "rates rise geometrically from the first trained layer to the head",
        "1801.06146",
    ),
    _method(
        "Surgical: first block",
        {"groups": {"stages_trained": ["block_00", "head"]}},
        "only chosen stages; the first ones where the images differ in their low-level statistics",
        "2210.11466",
    ),
    _method("Bias only", {"groups": {"freeze": 0, "only": "bias"}}, "biases and the head", "2106.10199"),
    _method("Norm only", {"groups": {"freeze": 0, "only": "norm"}}, "norms and the head", "2003.00152"),
    _method(
        "Attention only",
        {"groups": {"freeze": "head", "rules": [(".*/attn/.*", "body")]}},
        "any params by rule: a regex over whole paths, and a label",
        "2203.09795",
    ),
    _method(
        "LoRA, query and value",
        {"groups": _HEAD, "lora": {"rules": "query_value", "rank": 8, "alpha": 16.0}},
        "low-rank deltas of chosen kernels, which stay frozen",
        "2106.09685",
    ),
    _method(
        "LoRA, all linear kernels",
        {"groups": _HEAD, "lora": {"rules": "linear", "rank": 8, "alpha": 16.0}},
        "deltas of attention and MLP",
        "2106.09685",
    ),
    _method(
        "Adapted statistics",
        {"groups": _LAST_2, "finetune.adapt_statistics": True},
        "BatchNorm of frozen stages follows the new images; nothing in a net without BatchNorm",
        "1603.04779",
    ),
    _method(
        "Frozen statistics",
        {"finetune.freeze_statistics": True},
        "BatchNorm of trained stages keeps the pretrained statistics; nothing in a net without BatchNorm",
        "2105.07576",
    ),
)
PHASES = (
    _method(
        "LP-FT",
        {"phases": [{"groups": _HEAD, "cache": "always"}, {"groups": {"freeze": 0}}]},
        "the head first, then everything, so that a random head does not distort the features",
        "2202.10054",
    ),
    _method(
        "Gradual unfreezing",
        {"phases": [{"groups": {"freeze": stage}, "epochs": 2} for stage in ("head", "block_11", "block_06")]},
        "more of the net in each phase, from the head down",
        "1801.06146",
    ),
    _method(
        "Small images first",
        {"phases": [{"image_size": 112, "epochs": 8}, {"epochs": 2}]},
        "most epochs at a quarter of the pixels, the last at full size",
        "1906.06423",
    ),
)
OPTIMIZATION = (
    _method(
        "SGD with momentum",
        {"optimizer": {"name": "sgd", "weight_decay": 0.0, "clip_norm": 1.0, "arguments": {"momentum": 0.9}}},
        "one moment in place of Adam's two; wants a far higher rate",
    ),
    _method(
        "Lion",
        {"optimizer": {"name": "lion", "weight_decay": 0.5, "clip_norm": 1.0}},
        "one moment; a rate 3 to 10 times lower and a decay as much higher than AdamW's",
        "2302.06675",
    ),
    _method(
        "Adafactor",
        {"optimizer": {"name": "adafactor", "weight_decay": 0.0, "clip_norm": 1.0}},
        "second moments of large kernels by row and column, no first",
        "1804.04235",
    ),
    _method(
        "bfloat16 first moment",
        {"optimizer.arguments": {"mu_dtype": "bfloat16"}},
        "half the memory of Adam's first moment",
    ),
    _method(
        "Moving average",
        {"finetune.average_decay": 0.999},
        "an average of the trained params is evaluated, tested and exported in their place",
    ),
    _method(
        "Gradient parts",
        {"finetune.num_parts": 4},
        "the batch in parts, one after the other: the same step in less memory",
    ),
    _method(
        "Recomputation",
        {"finetune.use_remat": True},
        "the inside of stages is computed again in the backward pass, in place of being kept",
        "1604.06174",
    ),
    _method(
        "bfloat16 compute",
        {"finetune.compute_dtype": "bfloat16"},
        "layers in bfloat16, params, head, loss and optimizer in float32",
        "1905.12322",
    ),
)
LOSS_AND_DATA = (
    _method("Mixup", {"mix": {"mixup_alpha": 0.8}}, "blends of two images and of their targets", "1710.09412"),
    _method("CutMix", {"mix": {"cutmix_alpha": 1.0}}, "a box from another image, targets by area", "1905.04899"),
    _method(
        "Augmentation",
        {"augment": {"views": 2, "crop_scale": (0.5, 1.0), "trivial_augment": True, "erasing_probability": 0.25}},
        "random crops, one operation an image, erased boxes; on the host",
        "2103.10158",
        "1708.04896",
    ),
    _method(
        "Label smoothing",
        {"loss": {"name": "softmax", "label_smoothing": 0.1}},
        "a share of each target goes to all classes alike",
        "1512.00567",
    ),
    _method(
        "Class weights",
        {"loss": {"name": "softmax", "class_weighting": "effective", "beta": 0.999}},
        "rare classes count for more in the loss",
        "1901.05555",
    ),
    _method("Balanced sampling", {"finetune.sampling": "class_balanced"}, "as many of each class", "1910.09217"),
    _method("Dropout", {"regularise": {"dropout": 0.1}}, "of the features before the head", "1207.0580"),
    _method(
        "Stochastic depth",
        {"regularise": {"stochastic_depth": 0.1}},
        "examples skip residual branches, late blocks more often",
        "1603.09382",
    ),
    _method(
        "L2-SP",
        {"penalties": {"l2_sp": {"strength": 0.01, "head_strength": 0.01}}, "optimizer.weight_decay": 0.0},
        "pulls params to where they began, in place of 0; reads the pretrained params in each step",
        "1802.01483",
    ),
    _method(
        "BSS",
        {"penalties": {"bss": {"strength": 0.001, "num_smallest": 1, "stage": "norm"}}},
        "shrinks the weakest directions of a batch's features",
        "Chen et al., NeurIPS 2019",
    ),
    _method(
        "Feature distillation",
        {"penalties": {"distillation": {"strength": 0.1, "stages": ("block_11",)}}},
        "keeps features near those of the pretrained net, which runs too",
        "1412.6550",
        "1901.09229",
    ),
)
METHODS = (*WHAT_IS_TRAINED, *PHASES, *OPTIMIZATION, *LOSS_AND_DATA)
