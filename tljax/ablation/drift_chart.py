"""The drift of a fine-tuned net as SVG text, coloured by the style sheet of the page it stands in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.ablation.svg import LETTER, TOP, WIDTH, Number, Scale, colour, cut, line, marker, svg, text
from tljax.paths import did_you_mean

ROW = 20  # height of a stage
NUMBERS = 50  # width of the column of numbers beside each half


def drift_chart(
    title: str, drifts: Sequence[Mapping[str, Any]], similarities: Mapping[str, Number], stages: Sequence[str]
) -> str:
    """Draw how far each stage moved, in its params on the left and in what it computes on the right.

    Either way the length of a line is the size of the change: on the left it leads from 0 to the relative L2, on the
    right from 1 to the CKA. Each value is printed beside it. What cannot be drawn, an infinite L2 or a CKA that is
    NaN, is printed only, and a stage that was not measured has no line.

    Args:
        title: which nets are compared.
        drifts: the rows of `tljax.finetune.drift.drift`.
        similarities: {stage: CKA} from `tljax.finetune.drift.stage_cka`.
        stages: of the network, in order of depth, which run from top to bottom.

    Raises:
        ValueError: a value of no stage, or no value at all.
    """
    moved = {row["stage"]: row["relative_l2"] for row in drifts}
    measured = {*moved, *similarities}
    strangers = [f"{name!r}{did_you_mean(name, stages)}" for name in sorted(measured - set(stages))]
    if strangers or not measured:
        got = f"values of {', '.join(strangers)}, no stages of the net" if strangers else "no values"
        raise ValueError(f"cannot draw the drift: got {got}; stages are {', '.join(stages)}")
    shown = [stage for stage in stages if stage in measured]
    heights = [TOP + 12 + ROW * index for index in range(len(shown))]
    bottom = heights[-1] + 12
    left = min(max(len(stage) for stage in shown) * LETTER + 16, 140)
    half = (WIDTH - left) / 2
    parts = [text(0, y + 4, cut(stage, left - 8)) for y, stage in zip(heights, shown, strict=True)]
    furthest = max((value for value in moved.values() if 0 < value < math.inf), default=1.0)
    distances = Scale(low=0, high=furthest, start=left, stop=left + half - NUMBERS - 12)
    parts += _half("relative L2 of params", 0, distances, 0, bottom)
    similarity = Scale(low=0, high=1, start=left + half, stop=WIDTH - NUMBERS - 12)
    parts += _half("CKA of outputs", 1, similarity, 1, bottom)
    for y, stage in zip(heights, shown, strict=True):
        if stage in moved:
            parts += _change(stage, moved[stage], 0, distances, 0, y, left + half - 16, ".2g")
        if stage in similarities:
            parts += _change(stage, similarities[stage], 1, similarity, 1, y, WIDTH, ".3f")
    return svg(title, bottom + 24, parts)


def _half(name: str, series: int, scale: Scale, unchanged: Number, bottom: Number) -> list[str]:
    """Draw the name and the grid of one measure, with a line where nothing has changed."""
    parts = [marker(scale.start + 5, 31, series), text(scale.start + 15, 35, name, f"name {colour(series)}")]
    # Narrower than the charts that `x_axis` is for.
    for tick in scale.ticks(3):
        parts.append(line(scale(tick), TOP, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick:g}", "small", "middle"))
    return [*parts, line(scale(unchanged), TOP, scale(unchanged), bottom, "baseline")]


def _change(
    stage: str, value: Number, series: int, scale: Scale, unchanged: Number, y: Number, numbers: Number, form: str
) -> list[str]:
    """Draw one value as a line from where nothing has changed, and print it with its right end at `numbers`."""
    if not math.isfinite(value):
        return [text(numbers, y + 4, "∞" if math.isinf(value) else "undefined", "small", "end")]
    printed = text(numbers, y + 4, format(value, form), "small", "end")
    whisker = line(scale(unchanged), y, scale(value), y, f"whisker {colour(series)}")
    return [whisker, marker(scale(value), y, series, f"{stage}: {value:.6g}"), printed]
