"""`config.few_shot`: probes that have a few training images of each class, drawn again and again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tljax.data.splits import Split, hashed_seed
from tljax.features.choosing import ProbeData
from tljax.features.few_shot import draw_shots
from tljax.features.probes import PROBES
from tljax.metrics import mean_interval
from tljax.paths import did_you_mean
from tljax.tasks.evaluation import check_single_label, evaluate
from tljax.tasks.inputs import Inputs
from tljax.tasks.sections import call

FEW_SHOT = "few_shot"
# A validation set of full size would be more than a few images. Source: Zhou et al. 2022, arXiv:2109.01134, code.
MOST_VAL_SHOTS = 4

log = logging.getLogger(__name__)


def few_shot(
    config: Mapping[str, Any],
    inputs: Inputs,
    split: Split,
    names_of: Mapping[str, Sequence[str]],
    read: Callable[[str], np.ndarray],
    *,
    shots: Sequence[int],
    draws: int,
    method: str,
) -> list[dict[str, Any]]:
    """Fit on a few images of each class and test on the whole test part.

    Args:
        config: of the run; the options of the method are in its section.
        inputs: data and pretrained net.
        split: images are drawn from its training part; those to choose on, as many or `MOST_VAL_SHOTS` of each class,
            from its validation part.
        names_of: features of each method.
        read: features by name.
        shots: numbers of training images of a class. In one draw, those of fewer are among those of more.
        draws: how often, at least 2.
        method: of the probe.

    Returns:
        A record for each features and number of shots: "mean" and "sd" of each metric over the draws, and each draw.

    Raises:
        ValueError: a method that has no features, too few draws, or too few images of a class.
    """
    check_single_label(inputs.source, "config.few_shot")
    if method not in PROBES or not names_of[method]:
        raise ValueError(
            f"config.few_shot.method is {method!r}{did_you_mean(method, PROBES)}, wanted one with features in "
            f"config.probe: {', '.join(name for name in PROBES if names_of[name]) or 'none has any'}"
        )
    if draws < 2:
        raise ValueError(f"config.few_shot.draws is {draws}, wanted at least 2: one says nothing of the spread")
    drawn = [
        _draw(inputs, split, shots, hashed_seed(config["seed"], f"few shots, draw {draw}")) for draw in range(draws)
    ]
    records = []
    for name in names_of[method]:
        features = read(name)
        for count in shots:
            found = []
            for train, val in drawn:
                data = ProbeData(
                    features=features,
                    labels=inputs.source.labels,
                    num_classes=inputs.num_classes,
                    folds=[(train[count], val[min(count, MOST_VAL_SHOTS)])],
                    train=train[count],
                    seed=config["seed"],
                )
                classifier, chosen = call(method, config, PROBES[method], data)
                probabilities = classifier.predict_proba(features[split.test])
                found.append({"chosen": chosen, **evaluate(inputs.source, split.test, probabilities)})
            records.append({"method": method, "features": name, "shots": count, **_summarise(found), "draws": found})
            log.info("%-8s on %-16s %d shots: accuracy %.3f", method, name, count, records[-1]["mean"]["accuracy"])
    return records


def _draw(inputs: Inputs, split: Split, shots: Sequence[int], seed: int) -> tuple[dict[int, np.ndarray], ...]:
    """Draw images to train on and to choose on, by number of images of a class."""
    labels, num_classes = inputs.source.labels, inputs.num_classes
    val_shots = sorted({min(count, MOST_VAL_SHOTS) for count in shots})
    return (
        draw_shots(labels, split.train, num_classes, shots, seed),
        draw_shots(labels, split.val, num_classes, val_shots, seed),
    )


def _summarise(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and sample standard deviation of each metric."""
    statistics = {metric: mean_interval([one["metrics"][metric] for one in found]) for metric in found[0]["metrics"]}
    return {
        "mean": {metric: values[0] for metric, values in statistics.items()},
        "sd": {metric: values[1] for metric, values in statistics.items()},
    }
