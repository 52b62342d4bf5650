"""From a name or a file to params that compute what their authors' code computes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from tljax.models import Net
from tljax.models.net import HEAD
from tljax.paths import stage_of
from tljax.plain import fingerprint
from tljax.preprocess import Preprocess
from tljax.weights.adapt import NewHead, adapt, class_indices, select_classes, target_architecture
from tljax.weights.fresh import FRESH, draw, fresh_preprocess, layout_of, open_fresh
from tljax.weights.options import adapted, check_options, prepared
from tljax.weights.source import Source, as_preprocess, check_source, open_source
from tljax.weights.strict import LoadReport

Size = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained network: the net without arrays, its arrays, and what it wants done to images.

    Args:
        name: as it was asked for.
        description, licence: for reports; "see the source" where the file does not say.
        net: the stages.
        params, stats: flat dicts keyed by path.
        preprocess: resize, crop and normalise.
        report: which keys of the source were used and ignored, which params are fresh.
        layout: name of the layout of the source.
        class_names: of the head, in order; None for a new head, or where the source does not say.
    """

    name: str
    description: str
    licence: str
    net: Net
    params: dict[str, Array]
    stats: dict[str, Array]
    preprocess: Preprocess
    report: LoadReport
    layout: str
    class_names: tuple[str, ...] | None = None

    def fingerprint(self) -> str:
        """Hash every param and statistic of the pretrained stages, all but the head, as the device holds them now."""
        kept = {path: array for path, array in {**self.params, **self.stats}.items() if stage_of(path) != HEAD}
        # Of copies: an array keeps what it once gave to the host, and would give that again.
        return fingerprint({path: fingerprint(jnp.array(array, copy=True)) for path, array in kept.items()})


def load(
    name: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    head: Mapping[str, Any] | None = None,
    image_size: Size | None = None,
    in_channels: int | None = None,
    patch_size: int | None = None,
    dtype: str = "float32",
    layout: str | None = None,
    architecture: Any = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Load pretrained params.

    Args:
        name: "arch.tag" of the catalog (`tljax models` lists it), "file:PATH" (a folder or file in any known format),
            "hf:OWNER/NAME" or "timm:NAME" on the Hugging Face hub; or "random:ARCHITECTURE", without any
            pretraining, drawn with seed 0 or that of "random:ARCHITECTURE@SEED".
        num_classes: classes of a new head, 0 for pooled features in place of scores; None keeps the head of the
            source, if any.
        classes: names of the classes of the source's head to keep, in this order; not with `num_classes`.
        head: how a new head starts; keyword arguments of `adapt.NewHead`. None is zeros.
        image_size: side in pixels, or (height, width); position embeddings are resampled to it. None takes the
            source's.
        in_channels: channels of the images; the first convolution is adapted.
        patch_size: side of a patch in pixels, of a ViT; the patch projection is resampled.
        dtype: of the params, "float32" or "bfloat16"; running statistics stay float32.
        layout: name of the published layout, where the keys fit several.
        architecture: a name of `tljax.models.ARCHITECTURES` or a config, where the file does not say and its shapes
            fit several or none.
        preprocess: what is to be done to images, where the source does not say or is to be overruled; a `Preprocess`
            or its keyword arguments.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: an unknown name, keys or shapes that do not fit (all listed), or an option out of range.
        FileNotFoundError: the folder, or a file of it, is missing.
        ImportError: a package that holds the weights, or reads them, is not installed.
        ConnectionError: the weights cannot be reached and the cache lacks them.
    """
    check_options(
        dtype=dtype, num_classes=num_classes, classes=classes, image_size=image_size, in_channels=in_channels,
        patch_size=patch_size, head=head,
    )  # fmt: skip
    # Configs that were stored as JSON have a list here.
    image_size = cast(Size, tuple(image_size)) if isinstance(image_size, list) else image_size
    if name.startswith(f"{FRESH}:"):
        _refuse_for_fresh(name, classes=classes, layout=layout, architecture=architecture, revision=revision)
        sizes = {"image_size": image_size, "in_channels": in_channels, "patch_size": patch_size}
        return _load_fresh(name, num_classes, NewHead(**dict(head or {})), dtype, preprocess, sizes)
    source = open_source(name, layout=layout, architecture=architecture, revision=revision)
    native = source.architecture
    indices = None if classes is None else class_indices(source.class_names, classes)
    chosen = prepared(source, preprocess, image_size, in_channels)
    target = target_architecture(
        native,
        num_classes=num_classes if indices is None else None,
        image_size=chosen.size,
        in_channels=in_channels,
        patch_size=patch_size,
    )
    target = target if indices is None else dataclasses.replace(target, num_classes=len(indices))
    new_head = None if num_classes is None else NewHead(**dict(head or {}))
    arrays, report = _read(source, target, new_head, indices, dtype)
    net = Net(target)
    return Pretrained(
        name=name,
        description=source.description,
        licence=source.licence,
        net=net,
        params={path: arrays[path] for path in net.shapes},
        stats={path: arrays[path] for path in net.stat_shapes},
        preprocess=chosen,
        report=report,
        layout=source.layout.name,
        class_names=tuple(classes) if classes is not None else None if new_head else source.class_names,
    )


def _refuse_for_fresh(name: str, **options: Any) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{name!r} has no file, so {' and '.join(given)} cannot be chosen; leave out what is not drawn"
        )


def _load_fresh(
    name: str,
    num_classes: int | None,
    head: NewHead,
    dtype: str,
    given: Preprocess | Mapping[str, Any] | None,
    sizes: Mapping[str, Any],
) -> Pretrained:
    """Draw what others read; every param is fresh."""
    native, seed = open_fresh(name.partition(":")[2])
    start = as_preprocess(given) or fresh_preprocess(native)
    chosen = adapted(start, sizes["image_size"], sizes["in_channels"])
    target = target_architecture(native, num_classes=num_classes, **{**sizes, "image_size": chosen.size})
    params, stats = draw(target, seed)
    params |= head.arrays({path: array.shape for path, array in params.items() if stage_of(path) == HEAD})
    return Pretrained(
        name=name,
        description=f"{name.partition(':')[2]} without pretraining",
        licence="none",
        net=Net(target),
        params={path: jnp.asarray(array, dtype) for path, array in params.items()},
        stats=stats,
        preprocess=chosen,
        report=LoadReport(used={}, ignored=(), fresh=tuple(sorted({**params, **stats}))),
        layout=layout_of(native).name,
    )


def _read(
    source: Source, target: Any, new_head: NewHead | None, indices: Sequence[int] | None, dtype: str
) -> tuple[dict[str, Array], LoadReport]:
    """Check every key and shape, then read, adapt and copy one array after the other."""
    native, net = source.architecture, Net(target)
    report = check_source(source, net, is_head_new=new_head is not None)
    arrays: dict[str, Array] = {}
    if new_head is not None:
        drawn = new_head.arrays({path: net.shapes[path].shape for path in report.fresh})
        arrays = {path: jnp.array(array, dtype) for path, array in drawn.items()}
    for path in (*net.shapes, *net.stat_shapes):
        if path in arrays:
            continue
        array = np.asarray(source.mapped.arrays[path].read())
        array = select_classes(path, adapt(path, array, native, target, source.layout.positions), indices)
        # A copy: JAX may otherwise lay its array over the memory of the file.
        arrays[path] = jnp.array(array, dtype if path in net.shapes else "float32", copy=True)
    return arrays, report
