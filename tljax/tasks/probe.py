"""Probe: fit simple classifiers on stored features of several depths."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.data.splits import save_split
from tljax.features.probes import PROBES, ProbeData
from tljax.features.store import FeatureStore
from tljax.models.net import Net
from tljax.paths import did_you_mean
from tljax.tasks.evaluation import check_evaluation, check_single_label, evaluate
from tljax.tasks.extract import open_features
from tljax.tasks.inputs import SPLIT, Inputs, open_split
from tljax.tasks.running import run_task
from tljax.tasks.sections import call

NAME = "probe"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """`config.probe`: which classifiers on which features; the options of each are its own section.

    Args:
        logistic: taps of `config.features` for logistic regression; several joined by "+" are put side by side.
        knn: the same for nearest neighbours.
        mlp: the same for the network of one hidden layer.
    """

    logistic: Sequence[str] = ()
    knn: Sequence[str] = ()
    mlp: Sequence[str] = ()

    def by_method(self) -> dict[str, Sequence[str]]:
        """Return the features of each classifier."""
        return {"logistic": self.logistic, "knn": self.knn, "mlp": self.mlp}


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Fit and test the classifiers on one split; idempotent."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Fit and test the classifiers; half-finished work is only that on the features."""
    probes = call("probe", config, Probes)
    source = inputs.source
    check_single_label(source, NAME)
    call("evaluate", config, check_evaluation, source)
    split = open_split(config, source, workdir)
    if not len(split.val):
        raise ValueError("probes choose on validation images and the split has none; raise config.split.val_fraction")
    store = open_features(config, inputs)
    records = []
    for method, names in probes.by_method().items():
        for name in names:
            data = ProbeData(
                features=read_features(store, name),
                labels=source.labels,
                num_classes=inputs.num_classes,
                folds=[(split.train, split.val)],
                train=split.train,
                test=split.test,
                seed=config["seed"],
            )
            probabilities, chosen = call(method, config, PROBES[method], data)
            scores = call("evaluate", config, evaluate, source, split.test, probabilities)
            label, depth = describe_features(inputs.pretrained.net, name)
            records.append({"method": method, "features": label, "depth": depth, "chosen": chosen, **scores})
            log.info("%-8s on %-16s accuracy %.3f", method, label, scores["metrics"]["accuracy"])
    # Nothing before this: a mistake in the config leaves the directory free for the mended one.
    save_split(workdir / SPLIT, split, source)
    rundir.write_json(workdir / "evaluations.json", records)
    return {
        f"{record['method']}/{record['features']}/{metric}": value
        for record in records
        for metric, value in record["metrics"].items()
    }


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
