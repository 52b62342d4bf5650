"""Reading: what is near what in the stored features, and in single images, for the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax.data.splits import hashed_seed
from tljax.features.maps import check_tsne, pca_map, sample_rows, tsne_map
from tljax.features.similarity import nearest_images
from tljax.features.store import FeatureStore
from tljax.features.taps import array_name, make_taps
from tljax.paths import did_you_mean
from tljax.tasks.extract import open_features
from tljax.tasks.inputs import Inputs
from tljax.tasks.patches import check_patches, read_patches
from tljax.tasks.probe import describe_features, read_features
from tljax.tasks.thumbnails import thumbnail

NAME = "reading"
MAPS = ("pca", "tsne")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """`config.reading`: what the report shows of the features.

    Args:
        map_features: taps of `config.features` to map; several joined by "+" are put side by side.
        maps: "pca", "tsne" or both.
        max_images: that a map shows, of each class its share; t-SNE takes about 4 s for 1,000.
        perplexity: of t-SNE, about how many neighbours an image has; less than a third of the images.
        neighbour_features: tap whose cosines say how near two images are.
        num_queries: images whose neighbours and patches are shown. Half of them are mistakes of the first fine-tuned
            net on its test images, the surest first; the others are right answers, of the classes in turn, the one of
            middle sureness first. Without fine-tuning, images are drawn, of the classes in turn.
        num_neighbours: of each of these.
        patch_stage: stage whose patches are compared with each other; None leaves that out.
    """

    map_features: Sequence[str]
    maps: Sequence[str]
    max_images: int
    perplexity: int | float
    neighbour_features: str
    num_queries: int
    num_neighbours: int
    patch_stage: str | None

    def __post_init__(self) -> None:
        """Refuse what no data could make right."""
        problems = [f"no map {name!r}{did_you_mean(name, MAPS)}" for name in self.maps if name not in MAPS]
        least = {"max_images": 2, "num_queries": 1, "num_neighbours": 1}
        problems += [
            f"{name} is {getattr(self, name)}, wanted at least {value}"
            for name, value in least.items()
            if getattr(self, name) < value
        ]
        if problems:
            raise ValueError(f"config.reading: {'; '.join(problems)}; maps are {', '.join(MAPS)}")


def check_reading(reading: Reading, config: Mapping[str, Any], inputs: Inputs) -> None:
    """Find mistakes before there is anything to read.

    Raises:
        ValueError: features that are not tapped, too few images, or a stage without patches.
        ImportError: t-SNE is asked for and scikit-learn is not there.
    """
    section = config["features"]
    taps = [
        array_name(tap, kind, kinds)
        for tap, kinds in make_taps(inputs.pretrained.net, section["taps"], section["pooling"])
        for kind in kinds
    ]
    named = [tap for name in (*reading.map_features, reading.neighbour_features) for tap in name.split("+")]
    unknown = [f"{tap!r}{did_you_mean(tap, taps)}" for tap in named if tap not in taps]
    if unknown:
        raise ValueError(f"config.reading: no features {', '.join(unknown)}; config.features has {taps}")
    num_images = len(inputs.source)
    if reading.num_neighbours >= num_images:
        raise ValueError(
            f"config.reading.num_neighbours is {reading.num_neighbours}, wanted 1 to {num_images - 1}, the other images"
        )
    if "tsne" in reading.maps:
        check_tsne(min(reading.max_images, num_images), reading.perplexity)
    if reading.patch_stage is not None:
        check_patches(inputs, reading.patch_stage)


def read_features_for_report(
    reading: Reading, config: Mapping[str, Any], inputs: Inputs, tuned: Sequence[Path]
) -> dict[str, Any]:
    """Return the part "reading" of the data of the report.

    Args:
        reading: what to show.
        config: of the comparison.
        inputs: data and pretrained net.
        tuned: run directories of fine-tuning; the predictions of the first say which images are shown.
    """
    store = open_features(config, inputs)
    rows = sample_rows(inputs.source.labels, reading.max_images, config["seed"])
    queries = _choose_queries(inputs, tuned, reading.num_queries, config["seed"])
    return {
        "maps": list(_maps(reading, store, rows, inputs)),
        "labels": inputs.source.labels[rows].tolist(),
        "names": [inputs.source[row]["name"] for row in rows],
        "neighbours": _neighbours(reading, store, queries, inputs),
        "patches": None if reading.patch_stage is None else read_patches(inputs, reading.patch_stage, list(queries)),
        "has_predictions": bool(tuned),
    }


def _maps(reading: Reading, store: FeatureStore, rows: np.ndarray, inputs: Inputs) -> Iterator[dict[str, Any]]:
    for name in reading.map_features:
        features = read_features(store, name)[rows]
        label, _ = describe_features(inputs.pretrained.net, name)
        for kind in reading.maps:
            if kind == "pca":
                points, shares = pca_map(features)
                detail = {"explained": shares.tolist()}
            else:
                points, detail = tsne_map(features, perplexity=reading.perplexity), {"perplexity": reading.perplexity}
            yield {"kind": kind, "features": label, "points": points.tolist(), **detail}


def _choose_queries(inputs: Inputs, tuned: Sequence[Path], count: int, seed: int) -> dict[int, int | None]:
    """Return {image: predicted class}, None where there is no prediction; see `Reading` for which."""
    labels = inputs.source.labels
    if not tuned:
        order = np.random.default_rng(hashed_seed(seed, "images to read")).permutation(len(labels))
        return {row: None for row in _in_turn([order[labels[order] == label] for label in np.unique(labels)], count)}
    with np.load(tuned[0] / "predictions.npz") as file:
        indices, probabilities = file["index"], file["probabilities"]
    predicted = dict(zip(indices.tolist(), probabilities.argmax(axis=1).tolist(), strict=True))
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    is_right = probabilities.argmax(axis=1) == labels[indices]
    wrong = indices[order[~is_right[order]]]
    right = indices[order[is_right[order]]]
    by_class = [_from_middle(right[labels[right] == label]) for label in np.unique(labels[right])]
    # More than half where there are not enough right answers.
    mistakes = wrong[: max(count // 2, count - len(right))].tolist()
    return {row: predicted[row] for row in (*mistakes, *_in_turn(by_class, count - len(mistakes)))}


def _from_middle(rows: np.ndarray) -> np.ndarray:
    """Reorder rows by their distance from the middle one."""
    return rows[np.argsort(np.abs(np.arange(len(rows)) - len(rows) // 2), kind="stable")]


def _in_turn(lists: Sequence[np.ndarray], count: int) -> list[int]:
    """Take the first of each list, then the second of each, up to `count` in all."""
    longest = max((len(rows) for rows in lists), default=0)
    return [int(rows[place]) for place in range(longest) for rows in lists if place < len(rows)][:count]


def _neighbours(
    reading: Reading, store: FeatureStore, queries: Mapping[int, int | None], inputs: Inputs
) -> dict[str, Any]:
    source = inputs.source
    features = read_features(store, reading.neighbour_features)
    nearest, cosines = nearest_images(features, np.array(list(queries)), reading.num_neighbours)

    def show(row: int) -> dict[str, Any]:
        example = source[row]
        truth = source.class_names[source.labels[row]]
        return {"jpeg": thumbnail(example["image"], example["name"]), "name": example["name"], "truth": truth}

    rows = []
    for (query, predicted), found, near in zip(queries.items(), nearest.tolist(), cosines.tolist(), strict=True):
        guess = None if predicted is None else source.class_names[predicted]
        others = [{**show(row), "cosine": cosine} for row, cosine in zip(found, near, strict=True)]
        rows.append({**show(query), "predicted": guess, "found": others})
    label, _ = describe_features(inputs.pretrained.net, reading.neighbour_features)
    return {"features": label, "rows": rows}
