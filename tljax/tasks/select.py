"""Select: compare stages of several models on the data at hand, before anything is trained, and say which to take."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.ablation.picture import write_picture
from tljax.ablation.selection import (
    Scored,
    best_of,
    level_with_best,
    rank_correlations,
    recommended,
    score_agreement,
)
from tljax.ablation.selection_chart import selection_chart
from tljax.ablation.selection_text import agreement_table, candidates_table, ranks_table, recommendation
from tljax.data.splits import Fold, save_split
from tljax.features.held_out import fold_accuracies
from tljax.features.leave_one_out import knn_accuracy, ridge_accuracy
from tljax.features.linear import softmax
from tljax.features.scores import SCORES, leep
from tljax.models.net import HEAD
from tljax.paths import did_you_mean
from tljax.tasks.candidates import Candidates, candidate_features, open_candidates, stage_cost
from tljax.tasks.inputs import SPLIT, make_folds, make_split
from tljax.tasks.running import run_task
from tljax.tasks.sections import call

NAME = "select"
LEEP, KNN, RIDGE = "leep", "knn", "ridge"
KNOWN = (*SCORES, LEEP, KNN, RIDGE)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Select:
    """`config.select`: how candidates are compared.

    Args:
        scores: any of "logme", "h_score", "transrate", "leep" (of models with a source head only), and the accuracies
            "knn" and "ridge" with each row left out, or its group where `config.split.groups` names groups.
        num_folds: of the cross-validated probe, two or more; they hold out whole groups where there are groups.
        strengths: of the probe, to choose from.
        neighbours: of kNN.
        dtype, batch_size: of the features, as in `config.features`.
    """

    scores: Sequence[str]
    num_folds: int
    strengths: Sequence[float]
    neighbours: int
    dtype: str
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        unknown = [name for name in self.scores if name not in KNOWN]
        if unknown:
            near = did_you_mean(unknown[0], KNOWN)
            raise ValueError(f"config.select: no score {unknown[0]!r}{near}; known: {', '.join(KNOWN)}")
        if self.num_folds < 2:
            raise ValueError(f"config.select.num_folds is {self.num_folds}, wanted two or more")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """The images that candidates are compared on: those of a split that are not for testing."""

    indices: np.ndarray
    labels: np.ndarray
    num_classes: int
    groups: np.ndarray | None
    folds: Sequence[Fold]


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Compare candidates and write select.json, select.md and select.svg; idempotent."""
    return run_task(NAME, work, config, workdir, opens=_open)


def _open(config: Mapping[str, Any]) -> Candidates:
    chosen = call("select", config, Select)
    return open_candidates(config, with_heads=LEEP in chosen.scores)


def work(config: Mapping[str, Any], workdir: Path, candidates: Candidates) -> dict[str, float]:
    """Score every candidate on the training and validation parts of the split; the test part is not looked at."""
    chosen = call("select", config, Select)
    source, section = candidates.source, config["split"]
    split = call("split", config, make_split, source, config["seed"])
    indices = np.sort(np.concatenate([split.train, split.val]))
    named = section.get("groups")
    groups = None if named is None else source.columns[named][indices]
    # Groups that are named are held out whole, whatever the kind of the split.
    dealt = {"split": {**section, "kind": "stratified" if named is None else "grouped"}}
    folds = call("split", dealt, make_folds, source, indices, chosen.num_folds, config["seed"])
    rows = _Rows(
        indices=indices,
        labels=source.labels[indices],
        num_classes=len(source.class_names),
        groups=groups,
        folds=[(np.searchsorted(indices, train), np.searchsorted(indices, held_out)) for train, held_out in folds],
    )
    found = _score_all(chosen, candidates, rows, Path(config["cache_dir"]) / "features")
    held_out = "images" if groups is None else f"whole groups of {named!r}"
    save_split(workdir / SPLIT, split, source)
    _write(workdir, found, config["seed"], source.name, num_images=len(indices), held_out=held_out)
    best = recommended(found)
    means = {f"accuracy/{one.name}": one.mean for one in found}
    return {**means, "recommended": best.mean, "standard_error": best.standard_error}


def _score_all(chosen: Select, candidates: Candidates, rows: _Rows, root: Path) -> list[Scored]:
    found = []
    settings = {"dtype": chosen.dtype, "batch_size": chosen.batch_size}
    for (candidate, pretrained), names in zip(candidates.models, candidates.names, strict=True):
        features = candidate_features(
            candidate, pretrained, candidates.source, root, with_head=LEEP in chosen.scores, **settings
        )
        store = features.store
        own = {}
        if HEAD in store.arrays:
            own[LEEP] = leep(softmax(store.read(HEAD)[rows.indices].astype(np.float64)), rows.labels)
        for tap, name in zip(candidate.taps, names, strict=True):
            values = store.read(tap)[rows.indices].astype(np.float32)
            one = Scored(
                name=name,
                model=candidate.title,
                accuracies=tuple(fold_accuracies(values, rows.labels, rows.num_classes, rows.folds, chosen.strengths)),
                scores={**_scores(chosen, values, rows), **own},
                width=values.shape[1],
                seconds=features.seconds,
                **stage_cost(pretrained, tap),
            )
            log.info("%-40s accuracy %.4f +- %.4f", one.name, one.mean, one.standard_error)
            found.append(one)
    return found


def _scores(chosen: Select, values: np.ndarray, rows: _Rows) -> dict[str, float]:
    """Return the scores of one stage that need its features alone."""
    found = {name: SCORES[name](values, rows.labels) for name in chosen.scores if name in SCORES}
    if KNN in chosen.scores:
        found[KNN] = knn_accuracy(values, rows.labels, neighbours=chosen.neighbours, groups=rows.groups)
    if RIDGE in chosen.scores:
        found[RIDGE] = ridge_accuracy(values, rows.labels, groups=rows.groups)
    return found


def _write(workdir: Path, found: Sequence[Scored], seed: int, data: str, *, num_images: int, held_out: str) -> None:
    """Write numbers, words and picture, and log the words."""
    correlations, agreement = rank_correlations(found, seed), score_agreement(found)
    said = recommendation(found, num_images=num_images, held_out=held_out)
    record = {
        "candidates": [
            {**dataclasses.asdict(one), "mean": one.mean, "standard_error": one.standard_error} for one in found
        ],
        "best": best_of(found).name,
        "within_one_standard_error": [one.name for one in level_with_best(found)],
        "recommended": recommended(found).name,
        "rank_correlations": {name: dataclasses.asdict(one) for name, one in correlations.items()},
        "agreement": agreement,
        "num_images": num_images,
        "held_out": held_out,
        "recommendation": said,
    }
    rundir.write_json(workdir / "select.json", record)
    text = f"""# Models for {data}

{said}

{candidates_table(found)}

Probe accuracy is the mean over folds ± its standard error. Params and GFLOPs are those up to the stage, for one image;
seconds are those of one pass of all images through the model, which serves all its stages.

## How scores without training rank them

Rank correlations with the probe, with 95% intervals from resampling the candidates, and what each score would choose.

{ranks_table(found, correlations)}

Spearman's correlation of scores with each other:

{agreement_table(agreement)}
"""
    rundir.write_bytes(workdir / "select.md", text.encode())
    write_picture(
        workdir / "select.svg", selection_chart(f"Models for {data}", found, correlations, recommended(found))
    )
    log.info("%s\npicture: %s", text, workdir / "select.svg")
