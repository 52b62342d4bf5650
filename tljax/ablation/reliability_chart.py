"""What was claimed against what came true, as SVG text."""

from collections.abc import Mapping, Sequence

from tljax.ablation.charts import LEFT
from tljax.ablation.svg import TOP, WIDTH, Number, Scale, colour, cut, line, marker, path, svg, text, x_axis, y_axis

_SIDE = 300

Bins = Sequence[Mapping[str, Number]]


def reliability_chart(title: str, series: Mapping[str, Bins], axes: tuple[str, str]) -> str:
    """Draw the bins of each series, with the line on which claims are true.

    Args:
        title: what is measured, on how many images.
        series: {name: bins with "count", "confidence" and "share"}.
        axes: what is claimed, and what came true.
    """
    top = TOP + 8
    x = Scale(low=0.0, high=1.0, start=LEFT, stop=LEFT + _SIDE)
    y = Scale(low=0.0, high=1.0, start=top + _SIDE, stop=top)
    parts = [
        *x_axis(x, top, top + _SIDE),
        *y_axis(y, LEFT, LEFT + _SIDE),
        line(x(0.0), y(0.0), x(1.0), y(1.0), "baseline"),
        text(LEFT, top - 10, axes[1], "small"),
        text(LEFT + _SIDE / 2, top + _SIDE + 33, axes[0], "small", "middle"),
    ]
    key = LEFT + _SIDE + 16.0
    for index, (name, bins) in enumerate(series.items()):
        parts.append(path([(x(part["confidence"]), y(part["share"])) for part in bins], f"thin {colour(index)}"))
        for part in bins:
            tooltip = f"{name}: claimed {part['confidence']:.3f}, true {part['share']:.3f}, n = {part['count']}"
            parts.append(marker(x(part["confidence"]), y(part["share"]), index, tooltip))
        parts.append(marker(key, top + 12 + 20 * index, index, name))
        parts.append(text(key + 10, top + 16 + 20 * index, cut(name, WIDTH - key - 10), f"name {colour(index)}"))
    return svg(title, top + _SIDE + 38, parts)
