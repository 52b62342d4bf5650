"""A map of images as SVG text: a point for each, told apart by class."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from tljax.ablation.charts import RIGHT
from tljax.ablation.svg import LETTER, NUM_COLOURS, TOP, WIDTH, Number, colour, cut, span, svg, text

HEIGHT = 380  # of the field with the points
# Four colours in four shapes.
MAX_CLASSES = NUM_COLOURS**2
REST = "rest"
_LEGEND_ROW = 18
_AIR = 8  # between the points and the frame


def scatter_chart(
    title: str,
    points: Sequence[Sequence[Number]],
    classes: Sequence[int],
    class_names: Sequence[str],
    names: Sequence[str],
    axes: tuple[str, str],
) -> str:
    """Draw points with the marker of their class; a pixel is the same distance in both directions.

    Of more than 16 classes the 15 with most points have markers of their own, and the rest share one.

    Args:
        title: what is mapped.
        points: x, and y which grows upwards.
        classes: of the points, as positions in `class_names`.
        class_names: all of them; those without points are left out of the legend.
        names: of the points, for tooltips.
        axes: what the two directions are; may be empty.
    """
    markers = _markers(classes)
    has_rest = len(set(classes)) > len(markers)
    legend = [(class_names[index], series) for index, series in markers.items()]
    key, top = _legend(legend + ([(f"{len(set(classes)) - len(markers)} others", None)] if has_rest else []))
    places = _places(points, top)
    parts = [
        *key,
        f'<rect class="frame" x="0.5" y="{top}" width="{RIGHT}" height="{HEIGHT}"/>',
        *(
            _point(x, y, markers.get(one), f"{name}, {class_names[one]}")
            for (x, y), one, name in zip(places, classes, names, strict=True)
        ),
        text(RIGHT / 2, top + HEIGHT + 16, axes[0], "small", "middle"),
        # Where an upright name would lie on its side.
        text(6, top + 15, axes[1], "small halo"),
    ]
    return svg(title, top + HEIGHT + 22, parts)


def _markers(classes: Sequence[int]) -> dict[int, int]:
    """Give each class its series, in order of the classes."""
    frequent = [one for one, _ in Counter(classes).most_common()]
    kept = frequent if len(frequent) <= MAX_CLASSES else frequent[: MAX_CLASSES - 1]
    return {one: series for series, one in enumerate(sorted(kept))}


def _legend(entries: Sequence[tuple[str, int | None]]) -> tuple[list[str], int]:
    """Name the markers in rows under the title; return the shapes and where the rest can begin."""
    parts, x, y = [], 5.0, 31
    for name, series in entries:
        shown = cut(name, WIDTH / 2)
        width = len(shown) * (LETTER + 0.8) + 28  # bold letters are wider
        if x > 5 and x + width > WIDTH:
            x, y = 5.0, y + _LEGEND_ROW
        style = "small" if series is None else f"name {colour(series)}"
        parts += [_point(x, y, series, name, scale=1.6), text(x + 10, y + 4, shown, style)]
        x += width
    return parts, y + TOP - 31


def _places(points: Sequence[Sequence[Number]], top: Number) -> list[tuple[float, float]]:
    """Fit the points into the field, in its middle, at one scale."""
    (left, right), (low, high) = (span((point[axis] for point in points), air=0) for axis in (0, 1))
    scale = min((RIGHT - 2 * _AIR) / (right - left), (HEIGHT - 2 * _AIR) / (high - low))
    middle = ((left + right) / 2, (low + high) / 2)
    centre = (RIGHT / 2, top + HEIGHT / 2)
    return [(centre[0] + (x - middle[0]) * scale, centre[1] - (y - middle[1]) * scale) for x, y in points]


def _point(x: Number, y: Number, series: int | None, tooltip: str, scale: float = 1.0) -> str:
    """Draw a small marker: each class has another pair of colour and shape, which survives a grey print."""
    r = 2.5 * scale
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0",
        f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
        f"l{-1.3 * r:.1f} {-1.3 * r:.1f}z",
        f"M{x - 0.9 * r:.1f} {y - 0.9 * r:.1f}h{1.8 * r:.1f}v{1.8 * r:.1f}h{-1.8 * r:.1f}z",
        f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}z",
    )
    # The second four have the colours of the first four in other shapes, and so on.
    shape = 0 if series is None else (series + series // NUM_COLOURS) % NUM_COLOURS
    style = REST if series is None else colour(series)
    return f'<path class="point {style}" d="{shapes[shape]}"><title>{escape(tooltip)}</title></path>'
