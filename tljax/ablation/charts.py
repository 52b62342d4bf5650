"""Charts as SVG text: plain functions of numbers, coloured by the style sheet of the page they stand in.

Every chart is one panel of the width of a telephone, so a page places two side by side or one under the
other, and letters keep their size. Series are told apart by colour, by marker and by a name beside them.
"""

import math
from collections.abc import Mapping, Sequence

from tljax.ablation.stats import Estimate
from tljax.ablation.svg import (
    LETTER,
    TOP,
    WIDTH,
    Number,
    Scale,
    colour,
    cross,
    cut,
    line,
    marker,
    path,
    span,
    svg,
    text,
    x_axis,
    y_axis,
)

RIGHT = WIDTH - 12  # where plots end
LEFT = 42  # where plots begin that have numbers to their left

Points = Sequence[tuple[Number, Number]]


def ends(found: Estimate | None) -> list[Number]:
    """Return the values that an estimate needs room for on an axis."""
    return [] if found is None else [found.mean, found.low, found.high]


def interval_chart(
    title: str,
    rows: Sequence[tuple[str, str, Sequence[Estimate | None]]],
    series: Sequence[str],
    *,
    references: Sequence[tuple[int, Number]] = (),
    baseline: tuple[str, Number] | None = None,
) -> str:
    """Draw a dot and a whisker for each row and series.

    Args:
        title: what is measured, with its unit.
        rows: (heading, label, one estimate for each series); a heading is printed where it changes.
        series: names, in the order of the estimates.
        references: (row, value) of results obtained elsewhere, drawn as crosses.
        baseline: name and value of a line across all rows.
    """
    left = min(max([len(label) for _, label, _ in rows] + [12]) * LETTER + 24, WIDTH * 0.46)
    values = [value for _, _, found in rows for one in found for value in ends(one)]
    values += [value for _, value in references] + ([baseline[1]] if baseline else [])
    low, high = span(values)
    scale = Scale(low=low, high=high, start=left, stop=RIGHT)
    key, top = _key(series, has_references=bool(references))
    heights, names = _rows(rows, left, top)
    bottom = heights[-1] + 16
    parts = [key, *names, *x_axis(scale, top, bottom)]
    if baseline:
        parts.append(line(scale(baseline[1]), top, scale(baseline[1]), bottom, "baseline"))
        parts.append(text(scale(baseline[1]) + 5, top + 10, baseline[0], "small"))
    parts += [cross(scale(value), heights[row]) for row, value in references]
    for height, (_, label, found) in zip(heights, rows, strict=True):
        for index, one in enumerate(found):
            shift = (index - (len(series) - 1) / 2) * 7
            parts += _dot(one, index, scale, None, (0, height + shift), f"{label}, {series[index]}")
    return svg(title, bottom + 24, parts)


def _rows(
    rows: Sequence[tuple[str, str, Sequence[Estimate | None]]], left: Number, top: Number
) -> tuple[list[Number], list[str]]:
    """Place the rows one under the other: the height of each, and the shapes of headings and labels."""
    y, heights, parts = top - 4.0, [], []
    for index, (heading, label, _) in enumerate(rows):
        if index == 0 or rows[index - 1][0] != heading:
            y += 24
            parts.append(text(0, y, heading, "strong"))
        y += 22
        heights.append(y - 4)
        parts += [text(12, y, cut(label, left - 20)), line(left, y - 4, RIGHT, y - 4, "grid")]
    return heights, parts


def _key(series: Sequence[str], *, has_references: bool) -> tuple[str, Number]:
    """Name the markers in lines under the title; return the shapes and where the rest can begin."""
    parts, x, y = [], 5.0, 31.0
    for index, name in enumerate(series):
        width = len(name) * LETTER + 36
        if x > 5 and x + width - 26 > WIDTH:
            x, y = 5.0, y + 17
        parts += [marker(x, y, index), text(x + 10, y + 4, name, f"name {colour(index)}")]
        x += width
    if has_references:
        parts += [cross(x, y), text(x + 10, y + 4, "independent result", "small")]
    return "".join(parts), TOP + y - 31


def _dot(
    found: Estimate | None,
    series: int,
    x: Scale | None,
    y: Scale | None,
    place: tuple[Number, Number],
    label: str,
) -> list[str]:
    """Draw an estimate along the one axis that has a scale; `place` fixes the other coordinate."""
    if found is None:
        return []

    def at(value: Number) -> tuple[Number, Number]:
        return x(value) if x else place[0], y(value) if y else place[1]

    tooltip = f"{label}: {found.mean:.3f}, n = {found.n}"
    if not found.has_interval:
        return [marker(*at(found.mean), series, tooltip)]
    tooltip += f", 95% interval {found.low:.3f} to {found.high:.3f}"
    whisker = line(*at(found.low), *at(found.high), f"whisker {colour(series)}")
    return [whisker, marker(*at(found.mean), series, tooltip)]


def depth_chart(
    title: str, lines: Mapping[str, Sequence[tuple[int, Estimate]]], domain: tuple[Number, Number], x_name: str
) -> str:
    """Draw estimates against depth: one line with whiskers for each series, named at its end.

    Args:
        title: what is measured, with its unit.
        lines: (depth, estimate) pairs of each series, by depth.
        domain: ends of the vertical axis; see `span`.
        x_name: what depth counts.
    """
    bottom, right = 260, WIDTH - 88
    depths = sorted({depth for points in lines.values() for depth, _ in points})
    x = Scale(low=depths[0] - 0.4, high=depths[-1] + 0.4, start=LEFT, stop=right)
    y = Scale(low=domain[0], high=domain[1], start=bottom, stop=TOP - 14)
    parts = y_axis(y, LEFT, right)
    every = math.ceil(len(depths) / 16)
    parts += [text(x(depth), bottom + 16, str(depth), "small", "middle") for depth in depths[::every]]
    parts.append(text((LEFT + right) / 2, bottom + 33, x_name, "small", "middle"))
    last: list[tuple[Number, str, int]] = []
    for index, (name, points) in enumerate(lines.items()):
        if not points:
            continue
        places = [(x(depth) + (index - (len(lines) - 1) / 2) * 4, y(found.mean)) for depth, found in points]
        parts.append(path(places, f"line {colour(index)}"))
        for place, (depth, found) in zip(places, points, strict=True):
            parts += _dot(found, index, None, y, place, f"{name}, depth {depth}")
        last.append((places[-1][1], name, index))
    return svg(title, bottom + 38, parts + _end_names(last, right + 6))


def _end_names(last: list[tuple[Number, str, int]], x: Number) -> list[str]:
    """Name lines at their (height, name, series) ends, moved down where two names would touch."""
    parts, free = [], 0.0
    for height, name, series in sorted(last):
        free = max(height + 4, free)
        parts.append(text(x, free, cut(name, WIDTH - x), f"name {colour(series)}"))
        free += 15
    return parts


def curve_chart(
    title: str,
    curves: Sequence[Points],
    series: int,
    x_domain: tuple[Number, Number],
    y_domain: tuple[Number, Number],
    x_name: str,
) -> str:
    """Draw a thin line through the (x, y) points of each repeat, all in the colour of one series."""
    bottom = 200
    x = Scale(low=x_domain[0], high=x_domain[1], start=LEFT, stop=RIGHT)
    y = Scale(low=y_domain[0], high=y_domain[1], start=bottom, stop=TOP - 14)
    parts = y_axis(y, LEFT, RIGHT)
    parts += [text(x(tick), bottom + 16, f"{tick:g}", "small", "middle") for tick in x.ticks()]
    parts.append(text((LEFT + RIGHT) / 2, bottom + 33, x_name, "small", "middle"))
    parts += [path([(x(a), y(b)) for a, b in points], f"thin {colour(series)}") for points in curves]
    return svg(title, bottom + 38, parts)


def confusion_chart(title: str, matrix: Sequence[Sequence[int]], class_names: Sequence[str], series: int) -> str:
    """Draw counts of images by true class (rows) and predicted class (columns), shaded by share of the row."""
    left = min(max(len(name) for name in class_names) * LETTER + 16, 150)
    width, height, top = (RIGHT - left) / len(class_names), 46, TOP + 12
    parts = [text(left, TOP - 8, "predicted →", "small"), text(0, TOP + 4, "true ↓", "small")]
    for column, name in enumerate(class_names):
        parts.append(text(left + (column + 0.5) * width, TOP + 8, cut(name, width - 4), "", "middle"))
    for row, (name, counts) in enumerate(zip(class_names, matrix, strict=True)):
        y = top + row * height
        parts.append(text(0, y + height / 2 + 4, cut(name, left - 8)))
        for column, count in enumerate(counts):
            x, share = left + column * width, count / max(sum(counts), 1)
            # At most half opaque, so that the numbers stay readable on it.
            parts.append(
                f'<rect class="fill {colour(series)}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
                f'height="{height - 2}" rx="2" fill-opacity="{0.04 + 0.46 * share:.3f}"/>'
            )
            parts.append(text(x + width / 2, y + 21, f"{count:,}", "", "middle"))
            parts.append(text(x + width / 2, y + 36, f"{share:.1%}", "share", "middle"))
    return svg(title, top + len(class_names) * height + 4, parts)
