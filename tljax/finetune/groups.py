"""Which params are trained, and at which rate: one label a path, one multiplier a label and a stage."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax import paths
from tljax.finetune.freezing import choose_trained
from tljax.finetune.kinds import is_bias, is_decayed, is_norm
from tljax.finetune.stage_rates import stage_factors

FROZEN = "frozen"
BODY = "body"
HEAD = "head"

# What `only` may be.
KINDS = {"bias": is_bias, "norm": is_norm}

Row = dict[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A label for every param path, and learning-rate factors for trained labels and stages.

    Args:
        stages: of the network, in order of depth.
        labels: {path: label} over all params; "frozen" is not trained.
        multipliers: {label: factor on the learning rate} of the trained labels in use.
        stage_factors: {stage: a further factor} of the stages with a trained param.
    """

    stages: tuple[str, ...]
    labels: dict[str, str]
    multipliers: dict[str, float]
    stage_factors: dict[str, float]

    @property
    def trained_stages(self) -> tuple[str, ...]:
        """Stages with a trained param, in order of depth."""
        trained = {paths.stage_of(path) for path in self.labels if self.is_trained(path)}
        return tuple(stage for stage in self.stages if stage in trained)

    @property
    def train_from(self) -> str:
        """First stage with a trained param: all before it is a constant function of the image."""
        return self.trained_stages[0]

    def is_trained(self, path: str) -> bool:
        """Tell whether a param is trained."""
        return self.labels[path] != FROZEN

    def multiplier(self, path: str) -> float:
        """Return the factor on the learning rate of a trained param: of its label times of its stage."""
        return self.multipliers[self.labels[path]] * self.stage_factors[paths.stage_of(path)]

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split a dict over param paths into trained and frozen."""
        return paths.partition(params, self.is_trained)

    def with_stage_factors(self, factors: Mapping[str, float]) -> "Groups":
        """Return the same groups with other stage factors, which take the place of those there are.

        Args:
            factors: at least 0, for every stage with a trained param; those of other stages are left out.

        Raises:
            ValueError: a trained stage has no factor, a factor is negative or a stage unknown.
        """
        problems = [
            f"no stage {name!r}{paths.did_you_mean(name, self.stages)}" for name in set(factors) - {*self.stages}
        ]
        problems += [f"{stage!r} is trained and has no factor" for stage in self.trained_stages if stage not in factors]
        problems += [f"{name!r} has {factor}, wanted at least 0" for name, factor in factors.items() if not factor >= 0]
        if problems:
            raise ValueError("stage factors do not fit: " + "; ".join(sorted(problems)))
        return dataclasses.replace(self, stage_factors={stage: factors[stage] for stage in self.trained_stages})


def make_groups(
    params: Iterable[str],
    stages: Sequence[str],
    *,
    freeze: str | int | float | None = None,
    stages_trained: Sequence[str] | None = None,
    only: str | None = None,
    rates: Mapping[str, float] | None = None,
    rules: Sequence[tuple[str, str]] = (),
    layer_decay: float | None = None,
    lowest_rate: float | None = None,
) -> Groups:
    """Label every param "frozen", "body" or "head", with exceptions by rule.

    Args:
        params: all param paths; a dict of params or of shapes will do.
        stages: of the network, in order of depth; the last is the head.
        freeze: what is frozen, as one of: the name or index of the first stage that is trained (the first stage, or 0,
            freezes nothing; the last trains a linear probe); -n, which trains the last n stages, head included; a
            share in [0, 1) of the stages before the head, rounded down.
        stages_trained: in place of `freeze`, all the stages that are trained; the head is one of them only if listed.
        only: "bias" or "norm" (scales and biases of the normalisation layers): in the trained stages before the head
            no other param is trained.
        rates: {label: factor on the learning rate}. "body" and "head" have 1 where not given; a label that
            only a rule knows must be here.
        rules: (regex over whole paths, label) pairs that override all of the above, first match wins.
        layer_decay: factor on the rate for each layer below the head; see `stage_rates.layer_ids`.
        lowest_rate: factor of the first trained layer, from which rates rise geometrically to 1 at the head.

    Raises:
        ValueError: an unknown stage, label or kind, a rule or `only` that matches nothing, a number out of range, two
            settings of which one is wanted, or no param left to train.

    Source:
        `stages_trained`: Lee et al. 2023, arXiv:2210.11466. `only="bias"`: Zaken et al. 2022, arXiv:2106.10199.
        `lowest_rate`: discriminative fine-tuning of Howard and Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    stages = tuple(stages)
    trained = choose_trained(stages, freeze=freeze, stages_trained=stages_trained)
    labels = _label_by_stage(list(params), stages, trained, only)
    if rules:
        patterns = [pattern for pattern, _ in rules]
        is_covering = all(paths.matches_any(patterns, path) for path in labels)
        # The closing rule leaves the other paths with the label of their stage.
        closing = [] if is_covering else [(".*", None)]
        overrides = paths.match([*rules, *closing], labels)
        labels |= {path: label for path, label in overrides.items() if label is not None}
    multipliers = _multipliers(rates or {}, {label for _, label in rules})
    used = set(labels.values()) - {FROZEN}
    if not used:
        raise ValueError(f"stages {', '.join(trained)} with rules {list(rules)} leave no param to train; freeze less")
    with_trained = {paths.stage_of(path) for path, label in labels.items() if label != FROZEN}
    return Groups(
        stages=stages,
        labels=labels,
        multipliers={label: factor for label, factor in multipliers.items() if label in used},
        stage_factors=stage_factors(stages, with_trained, layer_decay=layer_decay, lowest_rate=lowest_rate),
    )


def _label_by_stage(
    params: list[str], stages: tuple[str, ...], trained: tuple[str, ...], only: str | None
) -> dict[str, str]:
    strangers = sorted({paths.stage_of(path) for path in params} - set(stages))
    if strangers:
        raise ValueError(f"params begin with {strangers}, which are no stages; stages are {', '.join(stages)}")
    if only is not None and only not in KINDS:
        raise ValueError(f"only={only!r}{paths.did_you_mean(only, KINDS)}, wanted one of {', '.join(KINDS)}, or None")
    by_stage = {stage: FROZEN if stage not in trained else HEAD if stage == stages[-1] else BODY for stage in stages}
    labels = {path: by_stage[paths.stage_of(path)] for path in params}
    if only is None:
        return labels
    others = {path for path, label in labels.items() if label == BODY and not KINDS[only](path)}
    labels |= dict.fromkeys(others, FROZEN)
    if BODY not in labels.values():
        raise ValueError(f"only={only!r} matches no param of {', '.join(trained)} before the head; leave it out")
    return labels


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


def partition_table(
    groups: Groups, params: Mapping[str, Any], *, learning_rate: float | Mapping[str, float], weight_decay: float
) -> list[Row]:
    """List what is trained: one row for each stage and label, in order of depth.

    Args:
        groups: of the params.
        params: the params or their shapes.
        learning_rate: peak of the schedule, before multipliers and stage factors; or {label: peak} of the trained
            labels.
        weight_decay: as given to `optimizer.make_optimizer`; a row without a decayed param shows 0.
    """
    labels = groups.multipliers
    peaks = learning_rate if isinstance(learning_rate, Mapping) else dict.fromkeys(labels, learning_rate)
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
                    "learning_rate": peaks[label] * groups.multiplier(members[0]) if is_trained else 0.0,
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
