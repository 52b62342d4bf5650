"""From sections of a config to the parts of a fine-tuning method: what trains, on which deltas, for which loss."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tljax.data.class_weights import class_weights
from tljax.data.sources import Source
from tljax.finetune.groups import FROZEN, Groups, make_groups
from tljax.finetune.lora import init_lora, is_lora
from tljax.finetune.losses import is_correct, share_correct, sigmoid_cross_entropy, softmax_cross_entropy
from tljax.finetune.relative_gradients import choose_stages, rgn_factors
from tljax.paths import did_you_mean, matches_any
from tljax.tasks.sections import call

LORA = "lora"
SIGMOID = "sigmoid"
LOSSES: dict[str, Callable[..., jax.Array]] = {"softmax": softmax_cross_entropy, SIGMOID: sigmoid_cross_entropy}


@dataclass(frozen=True, kw_only=True)
class RelativeGradients:
    """`config.relative_gradients`: how the last phase follows relative gradient norms (Lee et al., arXiv:2210.11466).

    Args:
        num_batches: that the norms are measured on.
        count: train so many stages, those with the largest norms, and the head, whatever `config.groups` says of
            stages; None keeps its stages and multiplies their rates by the norms over the largest (Auto-RGN).
    """

    num_batches: int
    count: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured or chosen."""
        if self.num_batches < 1 or (self.count is not None and self.count < 1):
            raise ValueError(
                f"config.relative_gradients: num_batches is {self.num_batches} and count {self.count}, wanted at least "
                "1 each, or None for count"
            )


def label_params(
    config: dict[str, Any], params: Mapping[str, Any], stages: Sequence[str], norms: Mapping[str, float] | None
) -> Groups:
    """Label the params, by `config.groups` and, where there are norms, `config.relative_gradients`.

    Deltas are trained and their kernels are not, unless a rule of the config says otherwise.
    """
    config = _with_lora_rules(config, params)
    if norms is None:
        return call("groups", config, make_groups, params, stages)
    count = call("relative_gradients", config, RelativeGradients).count
    if count is None:
        groups = call("groups", config, make_groups, params, stages)
        factors = {stage: groups.stage_factors.get(stage, 1.0) * factor for stage, factor in rgn_factors(norms).items()}
        return groups.with_stage_factors(factors)
    section = {key: value for key, value in config["groups"].items() if key not in ("freeze", "stages_trained")}
    section["stages_trained"] = [*choose_stages(norms, count=count), stages[-1]]
    return call("groups", {"groups": section}, make_groups, params, stages)


def make_loss(
    labels: Any,
    source: Source,
    *,
    name: str,
    label_smoothing: float = 0.0,
    class_weighting: str | None = None,
    beta: float | None = None,
) -> dict[str, Any]:
    """Return the keyword arguments of `step.train_body` that say what is minimised, penalties aside.

    Args:
        labels: of the training images.
        source: they are from.
        name: "softmax" where classes exclude each other, as one class an image or as shares; "sigmoid" for
            multi-label data.
        label_smoothing: see `finetune.losses`.
        class_weighting: None, or a kind of `class_weights`; the weights are on the targets, and not on what label
            smoothing adds to them. A soft label counts as that of its largest share.
        beta: of `class_weights`.

    Raises:
        ValueError: an unknown loss, one that does not go with the data, or class weights that do not fit.
    """
    if name not in LOSSES:
        raise ValueError(f"config.loss: no loss {name!r}{did_you_mean(name, LOSSES)}; known: {', '.join(LOSSES)}")
    if (name == SIGMOID) != source.is_multi_label:
        held, wanted = ("any number of classes", SIGMOID) if source.is_multi_label else ("one class", "softmax")
        raise ValueError(
            f"config.loss.name is {name!r}, and in {source.name!r} an image has {held}; set it to {wanted!r}, "
            "or change config.data.kind"
        )
    if source.is_multi_label and class_weighting is not None:
        raise ValueError(
            f"config.loss.class_weighting is {class_weighting!r}, and in multi-label data no class takes the place of "
            "another that it could be weighed against; set it to None"
        )
    num_classes = len(source.class_names)
    weights = None if class_weighting is None else class_weights(labels, num_classes, kind=class_weighting, beta=beta)
    return {
        "loss": functools.partial(LOSSES[name], label_smoothing=label_smoothing),
        "correct": share_correct if source.is_multi_label else is_correct,
        "class_weights": None if weights is None else tuple(weights.tolist()),
    }


def low_rank_deltas(
    params: Mapping[str, Any], seed: int, *, rules: Sequence[str], rank: int, alpha: float
) -> tuple[dict[str, Any], float]:
    """Return the deltas of `config.lora`, and the factor on them.

    Args:
        params: of the pretrained net.
        seed: of the run.
        rules: see `lora.init_lora`.
        rank: likewise.
        alpha: the factor is alpha / rank.
    """
    return init_lora(params, jax.random.key(seed), rules=rules, rank=rank), alpha / rank


def _with_lora_rules(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    deltas = [path for path in params if is_lora(path)]
    if not deltas:
        return dict(config)
    groups = dict(config["groups"])
    given = list(groups.get("rules", ()))
    kernels = sorted({path.rsplit("/", 1)[0] for path in deltas})
    # One rule for each path that no rule of the config has: every rule must win somewhere.
    labels = {**dict.fromkeys(kernels, FROZEN), **dict.fromkeys(deltas, LORA)}
    left = {path: label for path, label in labels.items() if not matches_any([rule for rule, _ in given], path)}
    groups["rules"] = [*given, *((re.escape(path), label) for path, label in left.items())]
    if LORA in left.values():
        groups["rates"] = {LORA: 1.0, **groups.get("rates", {})}
    return {**config, "groups": groups}
