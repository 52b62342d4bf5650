"""From what was read of the features to charts."""

from collections.abc import Mapping, Sequence
from typing import Any

from tljax.ablation.heat_chart import heat_chart
from tljax.ablation.scatter_chart import scatter_chart

MAP_NAMES = {"pca": "PCA", "tsne": "t-SNE"}


def draw_maps(reading: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """Draw every map; all show the same images."""
    return [
        scatter_chart(
            f"{MAP_NAMES[one['kind']]} of {one['features']}",
            one["points"],
            reading["labels"],
            class_names,
            reading["names"],
            _axes(one),
        )
        for one in reading["maps"]
    ]


def _axes(one: Mapping[str, Any]) -> tuple[str, str]:
    if one["kind"] != "pca":
        return "", ""
    first, second = (f"{share:.0%} of the variance" for share in one["explained"])
    return f"1st direction: {first}", f"2nd direction, upwards: {second}"


def draw_patches(reading: Mapping[str, Any]) -> list[str]:
    """Draw what the patches of each image are like."""
    patches = reading["patches"]
    if patches is None:
        return []
    return [
        heat_chart(f"{one['name']}, {one['truth']}", one["jpeg"], (patches["whole"], one["to_whole"]), one["patches"])
        for one in patches["rows"]
    ]
