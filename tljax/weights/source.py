"""From a name to weights that are found and recognised, and not yet read."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax.models import Net
from tljax.models import architecture as architecture_named
from tljax.models.net import HEAD
from tljax.paths import stage_of
from tljax.preprocess import Preprocess
from tljax.weights.catalog import entry
from tljax.weights.catalog_entries import CATALOG
from tljax.weights.entry import Entry
from tljax.weights.folder import describe_folder
from tljax.weights.hub import hub_folder
from tljax.weights.layout import Layout
from tljax.weights.read import read_checkpoint
from tljax.weights.recognise import fitted, layout_named, recognise_architecture, recognise_layout
from tljax.weights.rules import Mapped, map_arrays, strip_prefix
from tljax.weights.stored import Checkpoint
from tljax.weights.strict import LoadReport, check

TIMM_OWNER = "timm"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights under our paths, still in their file.

    Args:
        description, licence: for reports; "see the source" where the file does not say.
        checkpoint: the file.
        layout: of its keys.
        architecture: with the classes, channels and image size of the checkpoint.
        architecture_name: in the registry, or "" where a config file describes it.
        mapped: the arrays.
        preprocess: what the weights want done to images; None where nothing says.
        class_names: of the head, in order; None where nothing says.
    """

    description: str
    licence: str
    checkpoint: Checkpoint
    layout: Layout
    architecture: Any
    architecture_name: str
    mapped: Mapped
    preprocess: Preprocess | None
    class_names: tuple[str, ...] | None


def open_source(
    name: str, *, layout: str | None = None, architecture: Any = None, revision: str | None = None
) -> Source:
    """Find weights and tell what they are, reading no array.

    Args:
        name: "arch.tag" of the catalog, "file:PATH", "hf:OWNER/NAME" or "timm:NAME".
        layout: name of the layout, where the keys fit several.
        architecture: a registry name or a config, where no config file says it and the shapes fit several or none.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: an unknown name, layout or architecture.
        FileNotFoundError: a file is missing.
        ImportError: a package that holds the weights, or reads them, is not installed.
        ConnectionError: the hub cannot be reached and its cache lacks the weights.
    """
    kind, _, place = name.partition(":")
    if revision is not None and kind not in ("hf", "timm"):
        raise ValueError(f"revision {revision!r} is for 'hf:' and 'timm:' names, got {name!r}")
    if kind == "file":
        path = Path(place).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
        return _of_path(path, f"{path.name}", "see the source", layout, architecture)
    if kind in ("hf", "timm"):
        folder = hub_folder(place if kind == "hf" else f"{TIMM_OWNER}/{place}", revision)
        return _of_path(folder, f"{name} at commit {folder.name}", "see the model card", layout, architecture)
    return _of_entry(entry(name), layout, architecture)


def _of_entry(found: Entry, layout: str | None, architecture: Any) -> Source:
    if found.source.startswith(("hf:", "timm:")):
        return open_source(found.source, layout=layout, architecture=architecture)
    checkpoint = found.open()
    known = layout_named(layout or found.layout)
    return _recognised(
        checkpoint, known, architecture or found.architecture, found.preprocess, found.description, found.licence, None
    )


def _of_path(path: Path, description: str, licence: str, layout: str | None, architecture: Any) -> Source:
    checkpoint = read_checkpoint(path)
    known = recognise_layout(checkpoint) if layout is None else layout_named(layout)
    about = describe_folder(path if path.is_dir() else path.parent, checkpoint)
    chosen = about.architecture if architecture is None else architecture
    return _recognised(checkpoint, known, chosen, about.preprocess, description, licence, about.class_names)


def _recognised(
    checkpoint: Checkpoint,
    layout: Layout,
    architecture: Any,
    preprocess: Preprocess | None,
    description: str,
    licence: str,
    class_names: tuple[str, ...] | None,
) -> Source:
    try:
        arrays = strip_prefix(checkpoint.arrays, layout)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    name = architecture if isinstance(architecture, str) else ""
    if architecture is None:
        name, native = recognise_architecture(arrays, layout, str(checkpoint.path))
        mapped = map_arrays(arrays, layout, native)
    else:
        given = architecture_named(architecture) if isinstance(architecture, str) else architecture
        if not isinstance(given, layout.family):
            raise ValueError(f"layout {layout.name!r} is of a {layout.family.__name__}, got a {type(given).__name__}")
        given = layout.published(given) if isinstance(architecture, str) else given
        mapped = map_arrays(arrays, layout, given)
        native = fitted(given, mapped)
    return Source(
        description=description,
        licence=licence,
        checkpoint=checkpoint,
        layout=layout,
        architecture=native,
        architecture_name=name,
        mapped=mapped,
        preprocess=preprocess,
        class_names=class_names,
    )


def check_source(source: Source, net: Net, *, is_head_new: bool) -> LoadReport:
    """Compare the keys and shapes of a source with what its architecture wants.

    Args:
        source: from `open_source`.
        net: that is to hold the params.
        is_head_new: the head of the source, and stages that go with it, give way to those of `net`, whatever their
            size.

    Returns:
        The report on a load; `fresh` are the params of the new head.

    Raises:
        ValueError: see `strict.check`; the message names the file.
    """
    native = Net(source.architecture)
    shapes: dict[str, Any] = {**native.shapes, **native.stat_shapes}
    replaced: set[str] = set()
    fresh: tuple[str, ...] = ()
    if is_head_new:
        fresh = tuple(sorted(path for path in net.shapes if stage_of(path) == HEAD))
        kept = set(net.stages) - {HEAD}
        replaced = {path for path in (*shapes, *source.mapped.arrays) if stage_of(path) not in kept}
    try:
        report = check(source.mapped, source.layout, source.architecture, shapes, fresh=replaced)
    except ValueError as error:
        raise ValueError(f"{source.checkpoint.path}: {error}") from error
    return dataclasses.replace(report, fresh=fresh)


def preprocess_of(source: Source, given: Preprocess | Mapping[str, Any] | None) -> Preprocess:
    """Return what is to be done to images: what was given, else what the source says.

    Raises:
        ValueError: neither says it; the message lists what published weights of the architecture want.
    """
    chosen = as_preprocess(given) or source.preprocess
    if chosen is not None:
        return chosen
    known = [
        f"{name}: {item.preprocess.describe()}"
        for name, item in CATALOG.items()
        if item.preprocess is not None and item.architecture == source.architecture_name
    ]
    listed = "; published weights of this architecture: " + "; ".join(known) if known else ""
    raise ValueError(
        f"{source.checkpoint.path} does not say how its images are prepared, and it belongs to the weights: give "
        f"preprocess=dict(size=..., resize=..., interpolation=..., mean=..., std=...){listed}"
    )


def as_preprocess(given: Preprocess | Mapping[str, Any] | None) -> Preprocess | None:
    """Return a preprocess that may be given as its keyword arguments."""
    if not isinstance(given, Mapping):
        return given
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Preprocess(**fields)
