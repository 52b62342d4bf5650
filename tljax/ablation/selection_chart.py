"""A selection as SVG text: accuracy of each candidate, then accuracy against its cost and against each score."""

import math
from collections.abc import Mapping, Sequence

from tljax.ablation.charts import RIGHT
from tljax.ablation.selection import SCORE_NAMES, RankCorrelation, Scored, score_names
from tljax.ablation.svg import LETTER, WIDTH, Number, Scale, colour, cut, line, marker, span, svg, text

ROW = 22  # height of a candidate
PANEL = 172  # height of a panel, with its title and its axis
GUTTER = 42  # left of each panel, where its numbers stand
_TOP = 40  # of the first row


def selection_chart(
    title: str, candidates: Sequence[Scored], correlations: Mapping[str, RankCorrelation], chosen: Scored
) -> str:
    """Draw the candidates by number: rows with means and standard errors, then a panel for cost and for each score.

    Args:
        title: what is compared, on which data.
        candidates: in the order of the table.
        correlations: of the scores with the probe, from `rank_correlations`.
        chosen: the recommended one, which is printed bold.
    """
    models = list(dict.fromkeys(one.model for one in candidates))
    series = [models.index(one.model) for one in candidates]
    ends = [one.mean + sign * one.standard_error for one in candidates for sign in (-1, 1)]
    accuracy = span(ends)
    bottom = _TOP + ROW * len(candidates)
    parts = _rows(candidates, series, accuracy, bottom, chosen)
    panels = [("GFLOPs to the stage", [one.gflops for one in candidates])]
    for name in score_names(candidates):
        found = correlations.get(name)
        label = f"{SCORE_NAMES[name]} (rank correlation {found.spearman:.2f})" if found else SCORE_NAMES[name]
        panels.append((label, [one.scores.get(name, math.nan) for one in candidates]))
    top = bottom + 46
    parts.append(text(0, top, "probe accuracy against", "strong"))
    for index, (label, values) in enumerate(panels):
        left = (index % 2) * (WIDTH / 2 + 4)
        place = (left, top + 12 + index // 2 * PANEL)
        parts += _panel(label, values, candidates, series, accuracy, place)
    return svg(title, top + 12 + math.ceil(len(panels) / 2) * PANEL, parts)


def _rows(
    candidates: Sequence[Scored], series: Sequence[int], domain: tuple[Number, Number], bottom: Number, chosen: Scored
) -> list[str]:
    """Draw a numbered row for each candidate, with a whisker of one standard error to each side."""
    left = min(max(len(one.name) for one in candidates) * LETTER + 40, WIDTH * 0.62)
    scale = Scale(low=domain[0], high=domain[1], start=left, stop=RIGHT)
    parts = [text(left, 31, "probe accuracy ± standard error over folds", "small")]
    parts += _ticks(scale, _TOP, bottom, 4)
    for index, one in enumerate(candidates):
        y = _TOP + ROW * (index + 0.5)
        style = "strong" if one is chosen else ""
        parts += [text(16, y + 4, f"{index + 1}", style, "end"), text(24, y + 4, cut(one.name, left - 32), style)]
        low, high = one.mean - one.standard_error, one.mean + one.standard_error
        parts.append(line(scale(low), y, scale(high), y, f"whisker {colour(series[index])}"))
        parts.append(marker(scale(one.mean), y, series[index], _tooltip(one)))
    return parts


def _ticks(scale: Scale, top: Number, bottom: Number, count: int) -> list[str]:
    """Draw an axis of few numbers: it is narrower than those of other charts."""
    parts = []
    for tick in scale.ticks(count):
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick:g}", "small", "middle"))
    return parts


def _panel(
    label: str,
    values: Sequence[Number],
    candidates: Sequence[Scored],
    series: Sequence[int],
    domain: tuple[Number, Number],
    place: tuple[Number, Number],
) -> list[str]:
    """Draw accuracy against one quantity; a candidate without it is left out."""
    left, top = place[0] + GUTTER, place[1] + 26
    right, bottom = place[0] + WIDTH / 2 - 8, place[1] + PANEL - 28
    low, high = span(values, 0.1)
    x = Scale(low=low, high=high, start=left, stop=right)
    y = Scale(low=domain[0], high=domain[1], start=bottom, stop=top)
    parts = [text(place[0] + 4, top - 8, label, "small"), *_ticks(x, top, bottom, 3)]
    for tick in y.ticks(3):
        parts.append(line(left, y(tick), right, y(tick), "grid"))
        parts.append(text(left - 6, y(tick) + 4, f"{tick:g}", "small", "end"))
    places = {
        index: (x(value), y(one.mean))
        for index, (value, one) in enumerate(zip(values, candidates, strict=True))
        if math.isfinite(value)
    }
    for index, (across, up) in places.items():
        one, style = candidates[index], colour(series[index])
        error = one.standard_error
        parts.append(line(across, y(one.mean - error), across, y(one.mean + error), f"whisker {style}"))
        parts.append(marker(across, up, series[index], _tooltip(one)))
        # Numbers stand on the right, or on the left where another marker is in the way.
        is_crowded = any(0 <= a - across < 15 and abs(b - up) < 16 for key, (a, b) in places.items() if key != index)
        shift, anchor = (-7, "end") if is_crowded else (7, "start")
        parts.append(text(across + shift, up - 5, f"{index + 1}", "small", anchor))
    return parts


def _tooltip(one: Scored) -> str:
    return f"{one.name}: {one.mean:.4f} ± {one.standard_error:.4f}, {one.gflops:.2f} GFLOPs"
