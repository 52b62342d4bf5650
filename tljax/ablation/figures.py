"""From the numbers of a job to its charts."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tljax.ablation import charts
from tljax.ablation.headline import Spotlight, method_name
from tljax.ablation.stats import Row
from tljax.ablation.svg import Number, span

# The metrics that are drawn as well as tabled, with what their axis counts.
DRAWN = {
    "accuracy": "Accuracy (share of test images)",
    "roc_auc": "ROC AUC (0.5 is chance, 1 is perfect)",
}

# A learning curve of more steps is drawn through means.
CURVE_POINTS = 60


def draw_intervals(
    rows: Sequence[Row], splits: Sequence[str], references: Sequence[Mapping[str, Any]], baseline: Number
) -> list[str]:
    """Draw all rows on all splits, with what others found for the same rows.

    Args:
        rows: the methods and features.
        splits: the kinds of split, in the order of the colours.
        references: results obtained elsewhere; those of rows not in this job are left to the table.
        baseline: accuracy of always answering the most frequent class.
    """
    pictures = []
    places = {(row.method, row.features): index for index, row in enumerate(rows)}
    for metric, title in DRAWN.items():
        lines = [
            (method_name(row.method), row.features, [row.estimate(split, metric) for split in splits]) for row in rows
        ]
        if not any(found for _, _, estimates in lines for found in estimates):
            continue
        elsewhere = [
            (places[one["method"], one["features"]], one["value"])
            for one in references
            if one["metric"] == metric and (one["method"], one["features"]) in places
        ]
        line = ("most frequent class", baseline) if metric == "accuracy" else None
        pictures.append(charts.interval_chart(title, lines, splits, references=elsewhere, baseline=line))
    return pictures


def draw_depths(rows: Sequence[Row], splits: Sequence[str]) -> list[str]:
    """Draw metrics against depth for every method that was run at two depths or more."""
    by_method: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.depth is not None:
            by_method.setdefault(row.method, {})[row.depth] = row
    pictures = []
    for method, at_depth in by_method.items():
        for metric, title in DRAWN.items() if len(at_depth) > 1 else ():
            lines = {
                split: [
                    (depth, found) for depth, row in sorted(at_depth.items()) if (found := row.estimate(split, metric))
                ]
                for split in splits
            }
            estimates = [found for points in lines.values() for _, found in points]
            if estimates:
                domain = span(value for found in estimates for value in charts.ends(found))
                pictures.append(
                    charts.depth_chart(f"{title}, {method_name(method)}", lines, domain, "depth (blocks run)")
                )
    return pictures


def draw_curves(curves: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[str]:
    """Draw training loss and validation accuracy of every repeat: a pair of charts with shared axes for each split."""
    length = max((len(curve["step"]) for curve in curves), default=0)
    window = math.ceil(length / CURVE_POINTS)
    loss_title = "Training loss (nats)" + (f", means of {window} steps" if window > 1 else "")
    kinds = ((loss_title, "step", "train_loss", window), ("Validation accuracy", "val_step", "val_accuracy", 1))
    lines = {
        (split, title): [_means(_finite(curve[x], curve[y]), size) for curve in curves if curve["split"] == split]
        for split in splits
        for title, x, y, size in kinds
    }
    steps = span((x for found in lines.values() for points in found for x, _ in points), air=0.01)
    pictures = []
    for (split, title), found in lines.items():
        heights = span(y for (_, other), same in lines.items() if other == title for points in same for _, y in points)
        if found:
            series = list(splits).index(split)
            pictures.append(
                charts.curve_chart(f"{title}, {split} splits", found, series, steps, heights, "step (updates)")
            )
    return pictures


def _finite(x: Sequence[Number], y: Sequence[Number]) -> list[tuple[float, float]]:
    """Return the points that can be drawn; a diverged run has others."""
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]


def _means(points: Sequence[tuple[float, float]], size: int) -> list[tuple[float, float]]:
    """Average neighbours: the loss of single batches hides its course."""
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in run), fmean(y for _, y in run)) for run in runs]


def draw_confusions(spotlight: Spotlight, splits: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Draw the confusion matrix, summed over repeats, of the best probe and of fine-tuning on each split."""
    pictures = []
    for row in (spotlight.probe, spotlight.finetune):
        for series, split in enumerate(splits if row else ()):
            if row and (matrix := row.confusion(split)):
                title = f"{method_name(row.method)}, {row.features}, {split} splits"
                pictures.append(charts.confusion_chart(title, matrix, class_names, series))
    return pictures


def last_values(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return where each learning curve ended, for tables."""
    return [
        {
            "split": curve["split"],
            "repeat": curve["repeat"],
            "steps": curve["step"][-1],
            "train_loss": curve["train_loss"][-1],
            "val_accuracy": curve["val_accuracy"][-1] if curve["val_accuracy"] else math.nan,
            "learning_rate": max(curve["learning_rate"]),
            "num_not_finite": sum(not math.isfinite(value) for value in curve["train_loss"]),
        }
        for curve in curves
    ]
