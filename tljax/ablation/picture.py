"""A chart as a file of its own, which any browser shows."""

import os
from importlib import resources

from tljax import rundir
from tljax.ablation.svg import WIDTH

_MARGIN = 16


def write_picture(path: str | os.PathLike, chart: str) -> None:
    """Write a chart of `charts` as an SVG file, with the colours of the report, in light or dark."""
    style = resources.files("tljax.ablation").joinpath("report.css").read_text()
    opening, _, rest = chart.partition(">")
    height = float(opening.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
    box = f"{-_MARGIN} {-_MARGIN} {WIDTH + 2 * _MARGIN} {height + 2 * _MARGIN:.0f}"
    opening = opening.replace(opening.split('viewBox="')[1].split('"')[0], box)
    page = f'<rect x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%" fill="var(--page)"/>'
    rundir.write_bytes(path, f"{opening}><style>{style}</style>{page}{rest}\n".encode())
