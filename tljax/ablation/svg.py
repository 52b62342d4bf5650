"""The few SVG shapes that charts are made of, as text; positions and sizes are in pixels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480  # of every chart: a telephone, or half a page
TOP = 46  # room for the title and the key
LETTER = 6.4  # width of a character at 12 px, with room for the widest of the usual system fonts
NUM_COLOURS = 4

Number = int | float


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear map from values to pixels."""

    low: Number
    high: Number
    start: Number
    stop: Number

    def __call__(self, value: Number) -> Number:
        """Return the pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    def ticks(self, count: int = 5) -> list[Number]:
        """Return at most `count` + 1 round values inside the scale."""
        # The thousandth and the billionth below forgive rounding: 0.1 * 3 is more than 0.3.
        wanted = (self.high - self.low) / count * 0.999
        power = 10.0 ** math.floor(math.log10(wanted))
        step = next(power * multiple for multiple in (1, 2, 5, 10) if power * multiple >= wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def span(values: Iterable[Number], air: Number = 0.06) -> tuple[Number, Number]:
    """Return the ends of an axis that holds all finite values with a little air."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = (high - low) * air or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def colour(series: int) -> str:
    """Return the class of a series; the style sheet knows its colour in light and dark."""
    return f"s{series % NUM_COLOURS}"


def svg(title: str, height: Number, parts: Sequence[str]) -> str:
    """Wrap shapes in a picture that scales with its column and says what it shows."""
    label = escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">'
        f'<text class="strong" x="0" y="14">{label}</text>{"".join(parts)}</svg>'
    )


def text(x: Number, y: Number, content: str, style: str = "", anchor: str = "start") -> str:
    """Place a line of text."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def cut(content: str, room: Number) -> str:
    """Shorten text to the room it has."""
    letters = max(int(room / LETTER), 2)
    return content if len(content) <= letters else content[: letters - 1].rstrip() + "…"


def line(x1: Number, y1: Number, x2: Number, y2: Number, style: str) -> str:
    """Draw a straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[Number, Number]], style: str) -> str:
    """Draw a line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{places}"/>'


def marker(x: Number, y: Number, series: int, tooltip: str = "") -> str:
    """Draw the marker of a series: a disc, a diamond, a square or a triangle, so that it survives a grey print."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"',
        f'<path d="M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z"',
        f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 8.4h-9.2z"',
    )
    return f'{shapes[series % NUM_COLOURS]} class="fill {colour(series)}"><title>{escape(tooltip)}</title>' + (
        "</circle>" if series % NUM_COLOURS == 0 else "</path>"
    )


def cross(x: Number, y: Number) -> str:
    """Draw the marker of a result obtained elsewhere."""
    return f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'


def x_axis(scale: Scale, top: Number, bottom: Number) -> list[str]:
    """Draw vertical grid lines with their values below."""
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick:g}", "small", "middle"))
    return parts


def y_axis(scale: Scale, left: Number, right: Number) -> list[str]:
    """Draw horizontal grid lines with their values to the left."""
    parts = []
    for tick in scale.ticks():
        parts.append(line(left, scale(tick), right, scale(tick), "grid"))
        parts.append(text(left - 6, scale(tick) + 4, f"{tick:g}", "small", "end"))
    return parts
