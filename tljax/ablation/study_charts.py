"""Charts of a study as SVG text: many cells, costs, bands of learning curves, and two factors at once."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from tljax.ablation.charts import LEFT, RIGHT, ends
from tljax.ablation.curves import Band
from tljax.ablation.stats import Estimate
from tljax.ablation.svg import (
    LETTER,
    NUM_COLOURS,
    TOP,
    WIDTH,
    Number,
    Scale,
    colour,
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

# Heights of the fields.
_FIELD, _ROW = 200, 44
# A logarithmic axis from this ratio of the largest to the smallest on.
_LOGARITHMIC = 20
_KEY_ROW = 17
_MOST_MARKERS = 60


def dense_chart(title: str, rows: Sequence[tuple[str, str, Estimate]], baseline: tuple[str, Number] | None) -> str:
    """Draw many estimates close under each other; their names are in tooltips.

    Args:
        title: what is measured.
        rows: (heading, name, estimate); a heading is printed where it changes, if there is room.
        baseline: name and value of a line across all rows.
    """
    low, high = span([value for _, _, found in rows for value in ends(found)] + ([baseline[1]] if baseline else []))
    left = min(max(len(heading) for heading, _, _ in rows) * LETTER + 12, 130)
    scale = Scale(low=low, high=high, start=left, stop=RIGHT)
    height, free = max(3.0, min(8.0, 1200 / len(rows))), 0.0
    bottom = TOP + height * len(rows) + 6
    parts = x_axis(scale, TOP - 16, bottom)
    if baseline:
        parts.append(line(scale(baseline[1]), TOP - 16, scale(baseline[1]), bottom, "baseline"))
        parts.append(text(scale(baseline[1]) + 5, TOP - 20, baseline[0], "small"))
    for index, (heading, name, found) in enumerate(rows):
        y = TOP + height * (index + 0.5)
        if (index == 0 or rows[index - 1][0] != heading) and y > free:
            parts.append(text(0, y + 4, cut(heading, left - 8), "small"))
            free = y + 12
        label = f"{name}: {_spoken(found)}"
        whisker = line(scale(found.low), y, scale(found.high), y, "thin s0") if found.has_interval else ""
        parts.append(f"{whisker}{_dot(scale(found.mean), y, 0, label)}")
    return svg(title, bottom + 24, parts)


def _dot(x: Number, y: Number, series: int, tooltip: str) -> str:
    """Draw a mark for where many are."""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="1.8"'
    return f'<circle class="fill {colour(series)}" {place}><title>{escape(tooltip)}</title></circle>'


def _spoken(found: Estimate) -> str:
    if not found.has_interval:
        return f"{found.mean:.4g}, n = 1, no interval"
    return f"{found.mean:.4g}, 95% interval {found.low:.4g} to {found.high:.4g}, n = {found.n}"


def grid_chart(
    title: str,
    names: tuple[str, str],
    levels: tuple[Sequence[str], Sequence[str]],
    means: Mapping[tuple[str, str], Estimate],
) -> str:
    """Draw the means of two factors as a table of shades, darker for larger, with their intervals.

    Args:
        title: what is measured.
        names: of the factor in the rows, and of that in the columns.
        levels: of the two.
        means: by (level of the first, level of the second).
    """
    rows, columns = levels
    left = min(max(len(row) for row in rows) * LETTER + 16, 130)
    width, top = (RIGHT - left) / len(columns), TOP + 16
    low = min(found.mean for found in means.values())
    reach = max(found.mean for found in means.values()) - low
    half = WIDTH / 2 - 16
    parts = [
        text(0, TOP - 12, f"{cut(names[0], half)} ↓", "small"),
        text(RIGHT, TOP - 12, f"{cut(names[1], half)} →", "small", "end"),
    ]
    parts += [
        text(left + (at + 0.5) * width, TOP + 8, cut(name, width - 4), "", "middle") for at, name in enumerate(columns)
    ]
    for at, row in enumerate(rows):
        y = top + at * _ROW
        parts.append(text(0, y + _ROW / 2 + 4, cut(row, left - 8)))
        for across, column in enumerate(columns):
            found = means.get((row, column))
            if found is not None:
                share = (found.mean - low) / reach if reach else 0.5
                parts += _shade(found, share, (left + across * width, y), width, f"{row}, {column}")
    return svg(title, top + len(rows) * _ROW + 4, parts)


def _shade(found: Estimate, share: float, place: tuple[Number, Number], width: Number, name: str) -> list[str]:
    x, y = place
    # At most half opaque, so that the numbers stay readable on it.
    box = (
        f'<rect class="fill s0" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{_ROW - 2}" rx="2" '
        f'fill-opacity="{0.04 + 0.46 * share:.3f}"><title>{escape(f"{name}: {_spoken(found)}")}</title></rect>'
    )
    middle = x + width / 2
    interval = f"{found.low:.3f} to {found.high:.3f}" if found.has_interval else "n = 1"
    # Where the interval has no room the tooltip and the table have it.
    if len(interval) * LETTER * 0.85 > width:
        return [box, text(middle, y + _ROW / 2 + 4, cut(f"{found.mean:.3f}", width), "share", "middle")]
    return [
        box,
        text(middle, y + 19, f"{found.mean:.3f}", "", "middle"),
        text(middle, y + 34, interval, "share", "middle"),
    ]


def cost_chart(
    title: str, x_name: str, points: Sequence[tuple[str, Number, Estimate, int]], series: Sequence[str]
) -> str:
    """Draw estimates against what they cost, with their intervals.

    Args:
        title: what is measured.
        x_name: the cost, with its unit.
        points: (name, cost, estimate, number of its series).
        series: names of the series, four at most.
    """
    key, top = _key(series)
    costs = [cost for _, cost, _, _ in points]
    is_logarithmic = min(costs) > 0 and max(costs) / min(costs) > _LOGARITHMIC
    places = [math.log10(cost) if is_logarithmic else cost for cost in costs]
    bottom = top + _FIELD
    x_low, x_high = span(places)
    y_low, y_high = span(value for _, _, found, _ in points for value in ends(found))
    x = Scale(low=x_low, high=x_high, start=LEFT, stop=RIGHT)
    y = Scale(low=y_low, high=y_high, start=bottom, stop=top)
    parts = [*key, *y_axis(y, LEFT, RIGHT), *_cost_axis(x, bottom, is_logarithmic=is_logarithmic)]
    parts.append(
        text((LEFT + RIGHT) / 2, bottom + 33, x_name + (", logarithmic" if is_logarithmic else ""), "small", "middle")
    )
    for (name, cost, found, index), place in zip(points, places, strict=True):
        if found.has_interval:
            parts.append(line(x(place), y(found.low), x(place), y(found.high), f"thin {colour(index)}"))
        draw = marker if len(points) <= _MOST_MARKERS else _dot
        parts.append(draw(x(place), y(found.mean), index, f"{name}: {_spoken(found)}, at {cost:.4g}"))
    return svg(title, bottom + 38, parts)


def _cost_axis(scale: Scale, bottom: Number, *, is_logarithmic: bool) -> list[str]:
    ticks = [tick for tick in scale.ticks() if not is_logarithmic or abs(tick - round(tick)) < 1e-9]
    if is_logarithmic and len(ticks) < 2:
        ticks = [scale.low * (1 - share) + scale.high * share for share in (0.1, 0.5, 0.9)]
    return [
        text(scale(tick), bottom + 16, f"{10**tick:,.4g}" if is_logarithmic else f"{tick:g}", "small", "middle")
        for tick in ticks
    ]


def band_chart(title: str, bands: Mapping[str, Band], x_name: str) -> str:
    """Draw means over seeds by step as lines, with their intervals as shades.

    Args:
        title: what is measured.
        bands: {name of a line: its means}; from the fifth on lines are dashed.
        x_name: what steps are.
    """
    key, top = _key(list(bands), is_line=True)
    bottom = top + _FIELD
    values = [value for one in bands.values() for value in (*one.mean, *one.low, *one.high)]
    x_low, x_high = span((step for one in bands.values() for step in one.steps), air=0.01)
    y_low, y_high = span(values)
    x = Scale(low=x_low, high=x_high, start=LEFT, stop=RIGHT)
    y = Scale(low=y_low, high=y_high, start=bottom, stop=top)
    parts = [*key, *y_axis(y, LEFT, RIGHT)]
    parts += [text(x(tick), bottom + 16, f"{tick:g}", "small", "middle") for tick in x.ticks()]
    parts.append(text((LEFT + RIGHT) / 2, bottom + 33, x_name, "small", "middle"))
    style = "shadow faint" if len(bands) > NUM_COLOURS else "shadow"
    shades = [_shadow(one, f"{style} {colour(index)}", x, y) for index, one in enumerate(bands.values())]
    lines = [
        path([(x(step), y(mean)) for step, mean in zip(one.steps, one.mean, strict=True)], _line_style(index))
        for index, one in enumerate(bands.values())
    ]
    dots = [
        marker(x(one.steps[0]), y(one.mean[0]), index, name)
        for index, (name, one) in enumerate(bands.items())
        if len(one.steps) == 1
    ]
    return svg(title, bottom + 38, [*parts, *shades, *lines, *dots])


def _shadow(one: Band, style: str, x: Scale, y: Scale) -> str:
    """Fill the interval of each step that has one."""
    known = [at for at, low in enumerate(one.low) if math.isfinite(low)]
    upper = [(x(one.steps[at]), y(one.high[at])) for at in known]
    lower = [(x(one.steps[at]), y(one.low[at])) for at in reversed(known)]
    points = " ".join(f"{across:.1f},{up:.1f}" for across, up in upper + lower)
    return f'<polygon class="{style}" points="{points}"/>' if known else ""


def _line_style(index: int) -> str:
    return f"line {colour(index)}{' dashed' if index // NUM_COLOURS % 2 else ''}"


def _key(series: Sequence[str], *, is_line: bool = False) -> tuple[list[str], Number]:
    """Name the series in lines under the title; return the shapes and where the field can begin."""
    if len(series) < 2:
        return [], TOP - 14
    parts, x, y = [], 5.0, 31.0
    for index, full in enumerate(series):
        name = cut(full, WIDTH * 0.9)
        width = len(name) * (LETTER + 0.6) + 34
        if x > 5 and x + width - 12 > WIDTH:
            x, y = 5.0, y + _KEY_ROW
        sample = line(x - 5, y, x + 9, y, _line_style(index)) if is_line else marker(x, y, index)
        parts += [sample, text(x + 13, y + 4, name, f"name {colour(index)}")]
        x += width
    return parts, y + 16
