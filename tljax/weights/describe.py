"""What weights are, in words: read from headers, with no array built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.models import ARCHITECTURES, Net
from tljax.paths import stage_of
from tljax.weights.adapt import target_architecture
from tljax.weights.source import Source, check_source

_FEW = 5


def describe(source: Source, *, num_classes: int | None = None, image_size: int | tuple[int, int] | None = None) -> str:
    """Say what a source is, stage by stage, and what loading it would leave out or add.

    Args:
        source: from `open_source`.
        num_classes: of a new head; None keeps the source's.
        image_size: at which the net would be used; None is the source's.

    Raises:
        ValueError: keys or shapes do not fit; all in one message, the same as `load` raises.
    """
    native, checkpoint = source.architecture, source.checkpoint
    target = target_architecture(
        native, num_classes=num_classes, image_size=image_size, in_channels=None, patch_size=None
    )  # fmt: skip
    net = Net(target)
    report = check_source(source, net, is_head_new=num_classes is not None)
    lines = [
        f"file          {checkpoint.path} ({checkpoint.format}, {len(checkpoint.arrays)} arrays)",
        f"layout        {source.layout.name}: {source.layout.description}",
        f"architecture  {_architecture(source)}",
        f"licence       {source.licence}",
        f"images        {_images(source)}",
        f"classes       {_classes(source)}",
        "",
        *_stages(source, net),
        "",
        f"{len(report.used)} keys used, {len(report.ignored)} ignored, {len(report.fresh)} params fresh",
        *_listed("ignored", report.ignored),
        *_listed("fresh", report.fresh),
    ]
    if image_size is not None and target != native:
        lines.append(
            f"for images of {image_size} pixels, position embeddings are resampled ({source.layout.positions})"
        )
    return "\n".join(lines)


def _architecture(source: Source) -> str:
    """Name the architecture, and the fields in which it differs from that of the registry."""
    name, native = source.architecture_name, source.architecture
    family = type(native).__name__
    known = source.layout.published(ARCHITECTURES[name]) if name in ARCHITECTURES else None
    changes = []
    for item in dataclasses.fields(native):
        value = getattr(native, item.name)
        if value != (getattr(known, item.name) if known is not None else item.default):
            changes.append(f"{item.name}={value!r}")
    return f"{name or family}({', '.join(changes)})"


def _images(source: Source) -> str:
    if source.preprocess is None:
        return "the source does not say how they are prepared; give preprocess= when loading"
    return ", ".join(f"{name} {value}" for name, value in source.preprocess.describe().items() if value is not None)


def _classes(source: Source) -> str:
    count, names = source.architecture.num_classes, source.class_names
    if not count:
        return "none: the head returns the pooled features"
    return f"{count}" + (f": {', '.join(names[:_FEW])}{', ...' if count > _FEW else ''}" if names else ", not named")


def _stages(source: Source, net: Net) -> list[str]:
    """Tabulate the stages: what the file holds of each, and the shape of what the stage puts out."""
    outputs = _output_shapes(net)
    lines = [f"{'stage':<14} {'arrays':>6} {'params':>13} {'MiB':>9}  {'stored as':<10} output of one image"]
    total = np.zeros(3)
    for stage in net.stages:
        held = [array for path, array in source.mapped.arrays.items() if stage_of(path) == stage]
        params = sum(int(np.prod(array.shape)) for array in held)
        size = sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in held) / 2**20
        kinds = ", ".join(sorted({str(array.dtype) for array in held})) or "-"
        lines.append(f"{stage:<14} {len(held):>6} {params:>13,} {size:>9.2f}  {kinds:<10} {outputs[stage]}")
        total += (len(held), params, size)
    lines.append(f"{'all':<14} {int(total[0]):>6} {int(total[1]):>13,} {total[2]:>9.2f}")
    return lines


def _output_shapes(net: Net) -> Mapping[str, str]:
    architecture: Any = net.architecture
    shape = getattr(architecture, "image_shape", (224, 224, architecture.in_channels))
    y: Any = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = {}
    for index, stage in enumerate(net.stages):
        y = jax.eval_shape(
            lambda params, stats, x, index=index: net.apply(params, stats, x, start=index, stop=index + 1)[0],
            net.shapes, net.stat_shapes, y,
        )  # fmt: skip
        shapes[stage] = " x ".join(map(str, y.shape[1:]))
    return shapes


def _listed(name: str, items: tuple[str, ...]) -> list[str]:
    return [f"  {name:<8} {item}" for item in items]
