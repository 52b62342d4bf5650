"""Cosines of patches as SVG text: an image, and beside it what its patches are like."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tljax.ablation.svg import WIDTH, Number, cut, svg, text

GAP = 12  # between tiles
SIDE = (WIDTH - 3 * GAP) / 4
_TOP = 42
_BAR = 7  # height of the colour bar
# Equally spaced colours of matplotlib's viridis, which is CC0: lightness grows evenly, in a grey print too.
_VIRIDIS = ("440154", "472c7a", "3b518b", "2c718e", "21908d", "27ad81", "5cc863", "aadc32", "fde725")

Grid = Sequence[Sequence[Number]]


def heat_chart(title: str, picture: str, whole: tuple[str, Grid], patches: Sequence[Mapping[str, Any]]) -> str:
    """Draw an image, then the cosines of its patches with the whole, and with single patches.

    Each has colours of its own from its lowest to its highest cosine, which are printed below it; the cosine of a
    patch with itself, which is 1, does not count in them.

    Args:
        title: of the image.
        picture: JPEG in base64, of what the grid divides.
        whole: what stands for the whole image, and the cosines with it [h w].
        patches: {"letter", "place" (row, column), "cosines" [h w]}; two at most.
    """
    name, to_whole = whole
    size = np.shape(to_whole)
    height = SIDE * size[0] / size[1]
    parts = [text(0, _TOP - 8, "image", "small"), _image(0, _TOP, height, "jpeg", picture, "")]
    for patch in patches:
        parts += _mark(0, height, size, patch["place"], patch["letter"])
    parts += _tile(SIDE + GAP, height, f"like {name}", np.asarray(to_whole), None)
    for index, patch in enumerate(patches, 2):
        cosines, place = np.asarray(patch["cosines"]), tuple(patch["place"])
        parts += _tile(index * (SIDE + GAP), height, f"like {patch['letter']}", cosines, place)
        parts += _mark(index * (SIDE + GAP), height, size, place, "")
    return svg(title, _TOP + height + _BAR + 22, parts)


def _tile(x: Number, height: Number, name: str, cosines: np.ndarray, itself: tuple[int, ...] | None) -> list[str]:
    """Draw cosines as squares of colour, with their name above and the colour bar below."""
    others = np.ones(cosines.shape, bool)
    if itself is not None:
        others[itself] = cosines.size == 1
    low, high = cosines[others].min(), cosines[others].max()
    share = np.clip((cosines - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    bottom = _TOP + height + 4
    return [
        text(x, _TOP - 8, cut(name, SIDE), "small"),
        _image(x, _TOP, height, "png", _png(share), "pixels"),
        _image(x, bottom, _BAR, "png", _png(np.linspace(0, 1, 64)[None]), ""),
        text(x, bottom + _BAR + 11, f"{low:.2f}", "small"),
        text(x + SIDE, bottom + _BAR + 11, f"{high:.2f}", "small", "end"),
    ]


def _mark(x: Number, height: Number, size: tuple[int, ...], place: Sequence[int], letter: str) -> list[str]:
    """Outline a patch, light on dark, so that it shows on any image; a letter stands beside it."""
    rows, columns = size
    width, tall = SIDE / columns, height / rows
    left, top = x + place[1] * width, _TOP + place[0] * tall
    box = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{tall:.1f}"'
    parts = [f'<rect class="mark under" {box}/>', f'<rect class="mark" {box}/>']
    if letter:
        is_far_right = place[1] > 0.75 * columns
        beside = left - 3 if is_far_right else left + width + 3
        height_of_letter = min(max(top + tall / 2 + 4, _TOP + 11), _TOP + height - 3)
        parts.append(text(beside, height_of_letter, letter, "letter", "end" if is_far_right else "start"))
    return parts


def _image(x: Number, y: Number, height: Number, kind: str, data: str, style: str) -> str:
    return (
        f'<image class="{style}" x="{x:.1f}" y="{y:.1f}" width="{SIDE:.1f}" height="{height:.1f}" '
        f'preserveAspectRatio="none" href="data:image/{kind};base64,{data}"/>'
    )


def _png(share: np.ndarray) -> str:
    """Encode values of 0 to 1 [h w] as a PNG of a pixel each, in base64."""
    colours = np.array([[int(code[at : at + 2], 16) for at in (0, 2, 4)] for code in _VIRIDIS], np.float64)
    stops = np.linspace(0, 1, len(colours))
    pixels = np.stack([np.interp(share, stops, channel) for channel in colours.T], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
