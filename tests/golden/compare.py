"""Compare ours with every recording, and write the README's table: python -m tests.golden.compare."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden import record, synthetic
from tljax.models import FAMILIES, Net
from tljax.weights.layout import Layout
from tljax.weights.rules import Mapped, map_arrays, strip_prefix
from tljax.weights.stored import Stored, stored
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS

FOLDER = record.FOLDER / "parity"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- parity: made by `python -m tests.golden.compare` -->", "<!-- end of parity -->"
# Column of the table to what the names of its layouts begin or end with; the first that fits.
COLUMNS = {
    "transformers, Flax": "hf-flax-",
    "transformers": "hf-",
    "timm": "timm-",
    "torchvision": "torchvision-",
    "authors' .pth": "meta-",
    "Google npz": "-npz",
    "Keras h5": "keras",
}
FAMILY_NAMES = {"resnet": "ResNet", "resnetv2": "BiT", "vgg": "VGG", "vit": "ViT"}


def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a recording says of its model, and the reference's output at each stage."""
    with np.load(FOLDER / f"{name}.npz") as file:
        outputs = {key.removeprefix("stage:"): file[key] for key in file.files if key != "about"}
        return json.loads(bytes(file["about"])), outputs


@functools.cache
def opened(name: str) -> tuple[Net, Layout, dict[str, Stored], Mapped]:
    """Return the net of a recording, its layout, and the published arrays: prefix removed, and mapped."""
    about, _ = read(name)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in about["architecture"].items()}
    net, layout = Net(FAMILIES[about["family"]](**settings)), LAYOUTS[about["layout"]]
    arrays = {key: stored(value) for key, value in synthetic.arrays(about["shapes"], about["dtypes"]).items()}
    arrays = strip_prefix(arrays, layout)
    return net, layout, arrays, map_arrays(arrays, layout, net.architecture)


def differences(name: str) -> dict[str, float]:
    """Run our net on a recording; return the largest difference at each stage over the reference's largest value."""
    about, wanted = read(name)
    net, layout, _, mapped = opened(name)
    check(mapped, layout, net.architecture, {**net.shapes, **net.stat_shapes})
    params = {path: jnp.asarray(np.asarray(mapped.arrays[path].read())) for path in net.shapes}
    stats = {path: jnp.asarray(np.asarray(mapped.arrays[path].read())) for path in net.stat_shapes}
    assert "head" in wanted
    assert set(wanted) <= set(net.stages)
    y = jnp.asarray(synthetic.images(*about["image_size"], channels=about["channels"]))
    worst = {}
    for index, stage in enumerate(net.stages):
        y, _ = net.apply(params, stats, y, start=index, stop=index + 1)
        if stage in wanted:
            assert y.shape == wanted[stage].shape, stage
            worst[stage] = float(np.abs(np.asarray(y) - wanted[stage]).max() / np.abs(wanted[stage]).max())
    return worst


def column(layout: str) -> str:
    """Return the column of a layout."""
    return next(name for name, text in COLUMNS.items() if layout.startswith(text) or layout.endswith(text))


def table(names: Iterable[str] = CASES) -> str:
    """Return the Markdown table: family by project, the worst difference of any stage of any recording."""
    cells: dict[tuple[str, str], float] = {}
    for name in names:
        about, _ = read(name)
        place = (FAMILY_NAMES[about["family"]], column(about["layout"]))
        cells[place] = max(cells.get(place, 0.0), *differences(name).values())
    columns = [name for name in COLUMNS if any(name == place[1] for place in cells)]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for family in FAMILY_NAMES.values():
        row = [_shown(cells.get((family, name))) for name in columns]
        lines.append(f"| {family} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _shown(difference: float | None) -> str:
    if difference is None:
        return ""
    return f"{difference:.0e}" if difference else "0"


def main() -> None:
    """Put the table between its marks in the README."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
    print(table())


if __name__ == "__main__":
    main()
