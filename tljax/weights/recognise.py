"""Tell what a checkpoint is: its layout, and which of the known architectures it fits."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tljax.models import ARCHITECTURES, Net
from tljax.models.net import HEAD
from tljax.paths import did_you_mean, stage_of
from tljax.weights.layout import Layout
from tljax.weights.rules import Mapped, map_arrays
from tljax.weights.stored import Checkpoint, Stored
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS

_ONNX_HINT = (
    ". Exporters of torch fold BatchNorm into the convolutions unless they are told not to: "
    "torch.onnx.export(..., training=TrainingMode.PRESERVE, do_constant_folding=False), or with dynamo=True, "
    "optimize=False"
)


def layout_named(name: str) -> Layout:
    """Return the layout of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no layout {name!r}{did_you_mean(name, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def recognise_layout(checkpoint: Checkpoint) -> Layout:
    """Tell the layout of a checkpoint from its keys.

    Raises:
        ValueError: no layout has these keys, or several have; the message names the keys or the layouts.
    """
    fitting = [layout for layout in LAYOUTS.values() if layout.prefix(checkpoint.arrays) is not None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(repr(layout.name) for layout in fitting)
        raise ValueError(f"{checkpoint.path} fits several layouts: {names}; choose one with layout=")
    keys = sorted(checkpoint.arrays)
    found = ", ".join(keys[:8]) + (f", ... ({len(keys)} in all)" if len(keys) > 8 else "")
    hint = _ONNX_HINT if checkpoint.format == "onnx" else ""
    raise ValueError(
        f"{checkpoint.path} ({checkpoint.format}) is in no known layout; its keys are {found or 'none'}; known "
        f"layouts: {', '.join(LAYOUTS)}. If it is one of these with other keys around it, choose it with layout={hint}"
    )


def fitted(architecture: Any, mapped: Mapped) -> Any:
    """Return an architecture with the classes, channels and image size that a mapped checkpoint has."""
    shapes = {path: array.shape for path, array in mapped.arrays.items()}
    names = {item.name for item in dataclasses.fields(architecture)}
    head = shapes.get("head/linear/kernel")
    changes: dict[str, Any] = {"num_classes": head[-1] if head else 0}
    first = architecture.stages[0]
    kernel = next((shape for path, shape in shapes.items() if stage_of(path) == first and len(shape) == 4), None)
    if kernel:
        changes["in_channels"] = kernel[2]
    if "has_head_bias" in names and head:
        changes["has_head_bias"] = "head/linear/bias" in shapes
    if "representation_width" in names:
        changes["representation_width"] = shapes.get("pre_logits/linear/kernel", (0,))[-1]
    if "hidden_width" in names and not any(path.startswith("fc1/") for path in shapes):
        changes["hidden_width"] = 0
    positions = shapes.get("embed/pos_embed")
    if positions and len(positions) == 3:
        patches = positions[1] - architecture.positioned_prefix_tokens
        side = math.isqrt(max(patches, 1))
        if patches != math.prod(architecture.grid) and side * side == patches:
            changes["image_size"] = side * architecture.patch_size
    return dataclasses.replace(architecture, **changes)


def recognise_architecture(arrays: Mapping[str, Stored], layout: Layout, where: str) -> tuple[str, Any]:
    """Find the one known architecture that a checkpoint without a config fits.

    Args:
        arrays: prefix removed.
        layout: of the arrays.
        where: what to call the checkpoint in errors.

    Returns:
        The name of the architecture, and the architecture itself, with the classes, channels and image size of the
        checkpoint.

    Raises:
        ValueError: none fits, or several that compute different things from the same params do.
    """
    family = {
        name: layout.published(known) for name, known in ARCHITECTURES.items() if isinstance(known, layout.family)
    }
    # Some names stand for one and the same net.
    candidates = {known: _candidate(arrays, layout, known) for known in dict.fromkeys(family.values())}
    fitting = {known: fit for known, (fit, mapped) in candidates.items() if not _num_differences(fit, mapped, most=0)}
    names = [name for name, known in family.items() if known in fitting]
    if not fitting:
        nearest = min(family, key=lambda name: _num_differences(*candidates[family[name]], most=3))
        raise ValueError(
            f"{where} is {layout.description}, and none of the known architectures fits it: {', '.join(family)}. Give "
            f"architecture= by name, or as a {layout.family.__name__}. The nearest is {nearest!r}: "
            f"{_mismatches(*candidates[family[nearest]], layout)}"
        )
    if len(set(fitting.values())) > 1:
        raise ValueError(
            f"{where} fits several architectures, whose params have the same shapes: {', '.join(names)}; choose one "
            "with architecture="
        )
    return names[0], next(iter(fitting.values()))


def _candidate(arrays: Mapping[str, Stored], layout: Layout, known: Any) -> tuple[Any, Mapped]:
    mapped = map_arrays(arrays, layout, known)
    return fitted(known, mapped), mapped


def _num_differences(architecture: Any, mapped: Mapped, *, most: int) -> int:
    """Count the stages whose params differ, up to one more than `most`; other stages count more than any of these."""
    held: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, array in mapped.arrays.items():
        held.setdefault(stage_of(path), {})[path] = array.shape
    others = (set(held) | {HEAD}) ^ set(architecture.stages)
    if others:
        return 10_000 + len(others)
    net, different = Net(architecture), len(mapped.problems)
    for stage in architecture.stages:
        different += held.get(stage, {}) != net.stage_shapes(stage)
        if different > most:
            break
    return different


def _mismatches(architecture: Any, mapped: Mapped, layout: Layout) -> ValueError | str:
    net = Net(architecture)
    try:
        check(mapped, layout, architecture, {**net.shapes, **net.stat_shapes})
    except ValueError as error:
        return error
    return "its stages differ"
