"""Probe: fit simple classifiers on stored features of several depths."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.data.sources import Source, has_labels
from tljax.data.splits import Fold, Split, save_split
from tljax.features.choosing import ProbeData
from tljax.features.probes import PROBES
from tljax.features.store import FeatureStore
from tljax.models.net import Net
from tljax.paths import did_you_mean
from tljax.tasks.evaluation import check_evaluation, evaluate, main_metric
from tljax.tasks.extract import open_features
from tljax.tasks.few_shot import FEW_SHOT, few_shot
from tljax.tasks.inputs import SPLIT, Inputs, make_folds, open_split
from tljax.tasks.running import run_task
from tljax.tasks.sections import call, call_optional

NAME = "probe"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """`config.probe`: which classifiers on which features; the options of each are its own section.

    Args:
        refit_on_val: fit on the training and the validation part after the choice, and not on the training part alone.
        num_folds: of cross-validation to choose on, over all that is fitted after the choice; 0 chooses on the
            validation part.
        logistic: taps of `config.features` for logistic regression; several joined by "+" are put side by side.
        ridge: the same for ridge regression.
        knn: the same for nearest neighbours.
        nearest_mean: the same for nearest class means.
        mlp: the same for the network of one hidden layer.
    """

    refit_on_val: bool
    num_folds: int
    logistic: Sequence[str] = ()
    ridge: Sequence[str] = ()
    knn: Sequence[str] = ()
    nearest_mean: Sequence[str] = ()
    mlp: Sequence[str] = ()

    def by_method(self) -> dict[str, Sequence[str]]:
        """Return the features of each classifier."""
        return {method: getattr(self, method) for method in PROBES}


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Fit and test the classifiers on one split; idempotent."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Fit and test the classifiers; half-finished work is only that on the features."""
    probes = call("probe", config, Probes)
    source = inputs.source
    call("evaluate", config, check_evaluation, source)
    split = open_split(config, source, workdir)
    folds, train = _rows_to_fit(config, source, split, probes)
    store = open_features(config, inputs)
    read = functools.partial(read_features, store)
    records, metric = [], main_metric(source)
    for method, names in probes.by_method().items():
        for name in names:
            data = ProbeData(
                features=read(name),
                labels=has_labels(source).astype(np.float32) if source.is_multi_label else source.labels,
                num_classes=inputs.num_classes,
                folds=folds,
                train=train,
                seed=config["seed"],
            )
            classifier, chosen = call(method, config, PROBES[method], data)
            probabilities = classifier.predict_proba(data.features[split.test])
            scores = call("evaluate", config, evaluate, source, split.test, probabilities)
            label, depth = describe_features(inputs.pretrained.net, name)
            records.append({"method": method, "features": label, "depth": depth, "chosen": chosen, **scores})
            log.info("%-8s on %-16s %s %.3f", method, label, metric, scores["metrics"][metric])
    fewer = call_optional(FEW_SHOT, config, few_shot, [], config, inputs, split, probes.by_method(), read)
    fewer = [
        {**record, "features": describe_features(inputs.pretrained.net, record["features"])[0]} for record in fewer
    ]
    # Nothing before this: a mistake in the config leaves the directory free for the mended one.
    save_split(workdir / SPLIT, split, source)
    rundir.write_json(workdir / "evaluations.json", records)
    if fewer:
        rundir.write_json(workdir / "few_shot.json", fewer)
    return _list_metrics(records, fewer)


def _rows_to_fit(
    config: Mapping[str, Any], source: Source, split: Split, probes: Probes
) -> tuple[list[Fold], np.ndarray]:
    """Return the folds to choose on, and the images to fit after the choice."""
    train = np.sort(np.concatenate([split.train, split.val])) if probes.refit_on_val else split.train
    if probes.num_folds:
        return call("split", config, make_folds, source, train, probes.num_folds, config["seed"]), train
    if not len(split.val):
        raise ValueError(
            "probes choose on validation images and the split has none; raise config.split.val_fraction, or set "
            "config.probe.num_folds"
        )
    return [(split.train, split.val)], train


def _list_metrics(records: Sequence[Mapping[str, Any]], fewer: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    result = {
        f"{record['method']}/{record['features']}/{metric}": value
        for record in records
        for metric, value in record["metrics"].items()
    }
    for record in fewer:
        name = f"{FEW_SHOT}/{record['method']}/{record['features']}/{record['shots']}"
        result |= {f"{name}/{metric}": value for metric, value in record["mean"].items()}
        result |= {f"{name}/{metric}_sd": value for metric, value in record["sd"].items()}
    return result


def read_features(store: FeatureStore, name: str) -> np.ndarray:
    """Read the taps of `name`, joined by "+", as float32 columns side by side; of several views, the image as it is.

    Raises:
        ValueError: the store has no such tap.
    """
    taps = name.split("+")
    unknown = [tap for tap in taps if tap not in store.arrays]
    if unknown:
        raise ValueError(
            f"features {name!r}: {unknown[0]!r} was not tapped{did_you_mean(unknown[0], store.arrays)}; "
            f"config.features.taps has {', '.join(store.arrays)}"
        )
    views = store.ingredients["views"]
    return np.concatenate([store.read(tap)[::views].astype(np.float32) for tap in taps], axis=1)


def describe_features(net: Net, name: str) -> tuple[str, int | None]:
    """Name features as people count blocks, from 1; the depth is None for several taps together."""
    # Where there are several poolings, a tap is "STAGE.POOLING".
    parts = [tap.partition(".") for tap in name.split("+")]
    depths = [net.depth(stage) for stage, _, _ in parts]
    labels = [f"{depth} {kind}".strip() for depth, (_, _, kind) in zip(depths, parts, strict=True)]
    if len(depths) == 1:
        return f"block {labels[0]}", depths[0]
    return f"blocks {'+'.join(labels)}", None
