"""Which params are trained, and at which rate: one label a path, one multiplier a label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from tljax import paths

FROZEN = "frozen"
BODY = "body"
HEAD = "head"

# Names of learned tokens and position tables. Decay pulls weights towards zero, which for these means
# towards "no position" and "no token"; timm's `no_weight_decay` lists the same.
UNDECAYED_NAMES = frozenset({"cls_token", "pos_embed", "register_tokens"})

Row = dict[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A label for every param path and a learning-rate multiplier for every trained label.

    Args:
        stages: of the network, in order of depth.
        labels: {path: label} over all params; "frozen" is not trained.
        multipliers: {label: factor on the learning rate} of the trained labels in use.
    """

    stages: tuple[str, ...]
    labels: dict[str, str]
    multipliers: dict[str, float]

    @property
    def train_from(self) -> str:
        """First stage with a trained param: all before it is a constant function of the image."""
        trained = {paths.stage_of(path) for path in self.labels if self.is_trained(path)}
        return next(stage for stage in self.stages if stage in trained)

    def is_trained(self, path: str) -> bool:
        """Tell whether a param is trained."""
        return self.labels[path] != FROZEN

    def multiplier(self, path: str) -> float:
        """Return the factor on the learning rate of a trained param."""
        return self.multipliers[self.labels[path]]

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split a dict over param paths into trained and frozen."""
        return paths.partition(params, self.is_trained)


def make_groups(
    params: Iterable[str],
    stages: Sequence[str],
    *,
    freeze: str | int,
    rates: Mapping[str, float] | None = None,
    rules: Sequence[tuple[str, str]] = (),
) -> Groups:
    """Label every param "frozen", "body" or "head", with exceptions by rule.

    Args:
        params: all param paths; a dict of params or of shapes will do.
        stages: of the network, in order of depth; the last is the head.
        freeze: name or index of the first stage that is trained; the stages before it are frozen. The first
            stage (or 0) freezes nothing, the last trains a linear probe.
        rates: {label: factor on the learning rate}. "body" and "head" have 1 where not given; a label that
            only a rule knows must be here.
        rules: (regex over whole paths, label) pairs that override `freeze`, first match wins.

    Raises:
        ValueError: an unknown stage or label, a rule that matches nothing, a rate that is not above 0, or
            no param left to train.
    """
    labels = _label_by_depth(list(params), tuple(stages), freeze)
    if rules:
        patterns = [pattern for pattern, _ in rules]
        is_covering = all(paths.matches_any(patterns, path) for path in labels)
        # The closing rule leaves the other paths with the label of their depth.
        closing = [] if is_covering else [(".*", None)]
        overrides = paths.match([*rules, *closing], labels)
        labels |= {path: label for path, label in overrides.items() if label is not None}
    multipliers = _multipliers(rates or {}, {label for _, label in rules})
    used = set(labels.values()) - {FROZEN}
    if not used:
        raise ValueError(f"freeze={freeze!r} with rules {list(rules)} leaves no param to train; freeze less")
    return Groups(
        stages=tuple(stages),
        labels=labels,
        multipliers={label: factor for label, factor in multipliers.items() if label in used},
    )


def _label_by_depth(params: list[str], stages: tuple[str, ...], freeze: str | int) -> dict[str, str]:
    strangers = sorted({paths.stage_of(path) for path in params} - set(stages))
    if strangers:
        raise ValueError(f"params begin with {strangers}, which are no stages; stages are {', '.join(stages)}")
    if isinstance(freeze, str) and freeze.isdecimal():
        # A command line knows no numbers where the config has a name.
        freeze = int(freeze)
    if freeze not in stages and freeze not in range(len(stages)):
        hint = paths.did_you_mean(str(freeze), stages)
        raise ValueError(
            f"freeze={freeze!r} is no stage{hint}; wanted the first stage to train, "
            f"an index in 0..{len(stages) - 1} or one of {', '.join(stages)}"
        )
    first_trained = stages.index(freeze) if isinstance(freeze, str) else freeze
    by_stage = {
        stage: FROZEN if depth < first_trained else HEAD if stage == stages[-1] else BODY
        for depth, stage in enumerate(stages)
    }
    return {path: by_stage[paths.stage_of(path)] for path in params}


def _multipliers(rates: Mapping[str, float], ruled: set[str]) -> dict[str, float]:
    """Check the rates against the labels that can occur, and fill in body and head."""
    known = ({BODY, HEAD} | ruled) - {FROZEN}
    multipliers = {BODY: 1.0, HEAD: 1.0, **rates}
    problems = [f"rate of {label!r}: no such label{paths.did_you_mean(label, known)}" for label in set(rates) - known]
    problems += [f"label {label!r} of a rule has no rate; add it to rates" for label in known - set(multipliers)]
    problems += [
        f"rate of {label!r} is {factor}, wanted above 0; to freeze, use the label {FROZEN!r}"
        for label, factor in rates.items()
        if not factor > 0
    ]
    if problems:
        raise ValueError("rates and labels do not fit:\n  " + "\n  ".join(sorted(problems)))
    return multipliers


def is_decayed(path: str, ndim: int) -> bool:
    """Tell whether weight decay applies: to matrices and kernels, not to 1-D params (biases, scales) or tokens."""
    return ndim > 1 and path.rsplit("/", 1)[-1] not in UNDECAYED_NAMES


def make_optimizer(
    groups: Groups,
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    clip_norm: float | None,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Build AdamW over the dict of trained params.

    The update of a param is `-multiplier * schedule(step) * (adam + weight_decay * param)`: the multiplier
    scales the decay too, as in timm and unlike big_vision. One Adam serves all labels and the multiplier
    is applied a path at a time, so the arrays of the optimizer state do not depend on how params are grouped.

    Args:
        groups: of the params; frozen ones must not be in the dict that is optimized.
        schedule: learning rate as a function of the step.
        weight_decay: on matrices and kernels only; see `is_decayed`.
        clip_norm: bound on the norm of the gradient over all trained params together; None does not clip.
        b1: decay of the mean of the gradient.
        b2: decay of the mean of its square.
        epsilon: added to the root of the mean square.

    Source:
        Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
        return {path: is_decayed(path, param.ndim) for path, param in params.items()}

    def label(params: Mapping[str, Any]) -> dict[str, str]:
        return {path: groups.labels[path] for path in params}

    rates: dict[Any, optax.GradientTransformation] = {
        name: optax.scale(factor) for name, factor in groups.multipliers.items()
    }
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    adamw = optax.adamw(schedule, b1, b2, epsilon, weight_decay=weight_decay, mask=decay_mask)
    chain = optax.chain(clip, adamw, optax.multi_transform(rates, label))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Adam's bias correction takes a float to an integer power, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def partition_table(
    groups: Groups, params: Mapping[str, Any], *, learning_rate: float, weight_decay: float
) -> list[Row]:
    """List what is trained: one row for each stage and label, in order of depth.

    Args:
        groups: of the params.
        params: the params or their shapes.
        learning_rate: peak of the schedule, before multipliers.
        weight_decay: as given to `make_optimizer`; a row without a decayed param shows 0.
    """
    rows: list[Row] = []
    for stage in groups.stages:
        inside = {path: groups.labels[path] for path in params if paths.stage_of(path) == stage}
        for label in sorted(set(inside.values())):
            members = [path for path in inside if inside[path] == label]
            is_trained = label != FROZEN
            has_decay = is_trained and any(is_decayed(path, len(params[path].shape)) for path in members)
            rows.append(
                {
                    "stage": stage,
                    "label": label,
                    "num_params": sum(params[path].size for path in members),
                    "is_trained": is_trained,
                    "learning_rate": learning_rate * groups.multipliers[label] if is_trained else 0.0,
                    "weight_decay": weight_decay if has_decay else 0.0,
                }
            )
    return rows


def format_partition(rows: Sequence[Row]) -> str:
    """Lay out `partition_table` as text, with the totals below."""
    lines = [f"{'stage':<12} {'label':<10} {'params':>12} {'learning rate':>14} {'weight decay':>13}"]
    for row in rows:
        numbers = f"{row['learning_rate']:>14.3g} {row['weight_decay']:>13.3g}" if row["is_trained"] else ""
        lines.append(f"{row['stage']:<12} {row['label']:<10} {row['num_params']:>12,} {numbers}".rstrip())
    trained = sum(int(row["num_params"]) for row in rows if row["is_trained"])
    total = sum(int(row["num_params"]) for row in rows)
    lines.append(f"trained {trained:,} of {total:,} params ({trained / total:.1%})")
    return "\n".join(lines)
