"""From the numbers of a study to its charts."""

from collections.abc import Mapping, Sequence

from tljax.ablation.charts import confusion_chart, interval_chart
from tljax.ablation.choice import PREFIX
from tljax.ablation.factorial import Cell
from tljax.ablation.study_analysis import (
    MOST_LINES,
    Analysis,
    Group,
    band_of,
    cell_names,
    costs_of,
    groups_of,
    over_group,
    shown_pair,
    validation_curve,
)
from tljax.ablation.study_charts import band_chart, cost_chart, dense_chart, grid_chart
from tljax.ablation.study_classes import class_names, confusion_of
from tljax.ablation.study_text import label
from tljax.ablation.svg import NUM_COLOURS, cut

# More cells than this are drawn without names, more classes than this and levels of a factor are tabled only.
_NAMED_CELLS, _MOST_CLASSES, _MOST_COLUMNS = 40, 8, 10
_DRIFTS = {"relative_l2": "Drift of params (relative L2)", "cka": "Likeness of outputs (CKA)"}


def draw_all(analysis: Analysis) -> dict[str, list[str]]:
    """Draw the charts of each section that has any."""
    return {
        "effects": draw_effects(analysis),
        "interactions": draw_interactions(analysis),
        "cells": draw_cells(analysis),
        "costs": draw_costs(analysis),
        "drift": draw_drift(analysis),
        "curves": draw_curves(analysis),
        "confusions": draw_confusions(analysis),
    }


def draw_effects(analysis: Analysis) -> list[str]:
    """Draw the mean of each level, and its difference to the reference."""
    pictures = []
    for effect in analysis.effects:
        rows = [("", level, [found]) for level, found in effect.levels.items()]
        pictures.append(
            interval_chart(f"{analysis.study.metric} by {effect.factor}", rows, ["mean over complete blocks"])
        )
        differences = [("", level, [found.difference]) for level, found in effect.effects.items()]
        title = f"{effect.factor}: difference to {effect.reference}"
        pictures.append(interval_chart(title, differences, ["equal seed and all else"], baseline=("no effect", 0.0)))
    return pictures


def draw_interactions(analysis: Analysis) -> list[str]:
    """Draw the means of each pair of factors, the one with fewer levels in the columns."""
    pictures = []
    for one in analysis.interactions:
        rows, columns = sorted(one.factors, key=lambda name: -len(analysis.factors[name]))
        levels = (analysis.factors[rows], analysis.factors[columns])
        is_turned = rows != one.factors[0]
        means = {((b, a) if is_turned else (a, b)): found for (a, b), found in one.means.items()}
        if len(levels[1]) <= _MOST_COLUMNS:
            title = f"{analysis.study.metric}: {rows} x {columns}"
            pictures.append(grid_chart(title, (rows, columns), levels, means))
    return pictures


def draw_cells(analysis: Analysis) -> list[str]:
    """Draw the test results of all cells, in the order of the grid."""
    names, metric = cell_names(analysis), analysis.study.metric
    found = [(one.cell, one.test) for one in analysis.cells if one.test]
    pivot = next((test for cell, test in found if cell == analysis.study.baseline), None)
    line = ("baseline", pivot.mean) if pivot else None
    if not found:
        return []
    title = f"{metric} of each cell, test images"
    if len(found) > _NAMED_CELLS:
        return [dense_chart(title, [(_heading(cell, analysis), names[cell], test) for cell, test in found], line)]
    return [interval_chart(title, [("", names[cell], [test]) for cell, test in found], ["mean"], baseline=line)]


def _heading(cell: Cell, analysis: Analysis) -> str:
    """Return the level of the first factor that varies: the grid's order keeps its cells together."""
    return next(level for level, levels in zip(cell, analysis.study.factors.values(), strict=True) if len(levels) > 1)


def draw_costs(analysis: Analysis) -> list[str]:
    """Draw the metric against each cost that varies, in the colours of the first factor with few levels."""
    names = cell_names(analysis)
    factors = list(analysis.study.factors)
    few = [name for name, levels in analysis.factors.items() if 1 < len(levels) <= NUM_COLOURS]
    series = list(analysis.factors[few[0]]) if few else []
    pictures = []
    for cost, (title, unit) in costs_of(analysis.study).items():
        points = [
            (
                names[one.cell],
                one.costs[cost].mean / unit,
                one.test,
                series.index(one.cell[factors.index(few[0])]) if few else 0,
            )
            for one in analysis.cells
            if one.test and cost in one.costs
        ]
        if len({place for _, place, _, _ in points}) > 1:
            by = f", by {few[0]}" if few else ""
            pictures.append(cost_chart(f"{analysis.study.metric} against {title}{by}", title, points, series))
    return pictures


def draw_drift(analysis: Analysis) -> list[str]:
    """Draw how far each stage moved, for cells where they are few, or by factor; four series in a chart."""
    finished = [run.record for run in analysis.study.finished]
    stages = list(dict.fromkeys(stage for record in finished for stage in record.stages))
    pictures = []
    for name, title in _DRIFTS.items():
        for groups in groups_of(analysis):
            for at in range(0, len(groups), NUM_COLOURS):
                chunk = groups[at : at + NUM_COLOURS]
                rows = [
                    ("", stage, [over_group(group, f"drift/{stage}/{name}") for group in chunk]) for stage in stages
                ]
                rows = [row for row in rows if any(row[2])]
                if rows:
                    pictures.append(interval_chart(f"{title}{_by(chunk)}", rows, _names(chunk)))
    return pictures


def draw_curves(analysis: Analysis) -> list[str]:
    """Draw validation results and training loss against the step."""
    metric = f"{PREFIX}{analysis.study.metric}"
    pictures = []
    for groups in groups_of(analysis):
        for at in range(0, len(groups), MOST_LINES):
            chunk = groups[at : at + MOST_LINES]
            validated = {
                group.name: found
                for group in chunk
                if (found := band_of(group, lambda record: validation_curve(record, metric)))
            }
            trained = {group.name: found for group in chunk if (found := band_of(group, lambda record: record.losses))}
            kinds: Sequence[tuple[str, Mapping]] = ((metric, validated), ("training loss", trained))
            pictures += [band_chart(f"{title}{_by(chunk)}", bands, "step (updates)") for title, bands in kinds if bands]
    return pictures


def draw_confusions(analysis: Analysis) -> list[str]:
    """Draw the confusion matrices of the two cells that are looked at closely."""
    pair, study = shown_pair(analysis), analysis.study
    names = class_names([run.record for run in study.finished])
    if pair is None or len(names) > _MOST_CLASSES:
        return []
    found = [(cell, confusion_of(study, cell)) for cell in pair]
    return [
        confusion_chart(label(cell, analysis), matrix, names, series)
        for series, (cell, matrix) in enumerate(found)
        if matrix
    ]


def _by(groups: Sequence[Group]) -> str:
    return f", by {groups[0].factor}" if groups[0].factor else ""


def _names(groups: Sequence[Group]) -> list[str]:
    return [cut(group.name, 400) for group in groups]
