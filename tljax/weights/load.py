"""From a name or a file to params that compute what their authors' code computes."""

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

from tljax.models import Net, architecture
from tljax.models.net import HEAD
from tljax.paths import partition, stage_of
from tljax.plain import fingerprint
from tljax.preprocess import Preprocess
from tljax.weights.adapt import adapt
from tljax.weights.catalog import entry
from tljax.weights.hub import hub_folder
from tljax.weights.hugging_face import ModelFolder, read_model_folder
from tljax.weights.rules import LoadReport, convert, strip_prefix


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
    """

    name: str
    description: str
    licence: str
    net: Net
    params: dict[str, Array]
    stats: dict[str, Array]
    preprocess: Preprocess
    report: LoadReport

    def fingerprint(self) -> str:
        """Hash every param and statistic of the pretrained stages, all but the head, as the device holds them now."""
        kept = {path: array for path, array in {**self.params, **self.stats}.items() if stage_of(path) != HEAD}
        # Of copies: an array keeps what it once gave to the host, and would give that again.
        return fingerprint({path: fingerprint(jnp.array(array, copy=True)) for path, array in kept.items()})


def load(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> Pretrained:
    """Load pretrained params.

    Args:
        name: "arch.tag" of the catalog, "file:DIR" for a Hugging Face model folder, or "hf:OWNER/NAME".
        num_classes: classes of a new head that starts at zero, 0 for pooled features in place of scores; None keeps
            the head of the source, if any.
        image_size: side in pixels; position embeddings are resampled to it. None takes the source's.
        dtype: of the params, "float32" or "bfloat16".
        revision: branch, tag or commit of an "hf:" repository.

    Raises:
        ValueError: an unknown name, keys or shapes that do not fit (all listed), or an option out of range.
        FileNotFoundError: the folder, or a file of it, is missing.
        ImportError: a package that holds the weights, or reads them, is not installed.
        ConnectionError: the hub cannot be reached and its cache lacks the weights.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not supported; choose 'float32' or 'bfloat16'")
    if image_size is not None and not (isinstance(image_size, Integral) and image_size > 0):
        raise ValueError(f"image_size is {image_size!r}, wanted a number of pixels above 0, or None for the source's")
    if num_classes is not None and not (isinstance(num_classes, Integral) and num_classes >= 0):
        raise ValueError(f"num_classes is {num_classes!r}, wanted a number of classes, or None for the source's head")
    if revision is not None and not name.startswith("hf:"):
        raise ValueError(f"revision {revision!r} is for 'hf:' names, got {name!r}")
    source, description, licence = _open(name, revision)
    native = source.architecture
    if num_classes is not None:
        native = dataclasses.replace(native, num_classes=num_classes)
    preprocess = source.preprocess
    if image_size is not None:
        preprocess = _resized(preprocess, image_size)
    target = dataclasses.replace(native, image_size=preprocess.size)
    net = Net(target)

    head, wanted = partition(Net(native).shapes, lambda path: num_classes is not None and stage_of(path) == HEAD)
    # A head that gives way to a new one is not wanted, whatever its size.
    replaced = ("head/linear/kernel", "head/linear/bias") if num_classes is not None else ()
    arrays, report = convert(
        strip_prefix(source.arrays, source.table), source.table, {**wanted, **head}, fresh=replaced
    )
    arrays = adapt(arrays, {path: leaf.shape for path, leaf in head.items()}, target.grid, target.prefix_tokens)
    return Pretrained(
        name=name,
        description=description,
        licence=licence,
        net=net,
        params={path: jnp.asarray(np.asarray(arrays[path]), dtype) for path in net.shapes},
        stats={},
        preprocess=preprocess,
        report=dataclasses.replace(report, fresh=tuple(sorted(head))),
    )


def _open(name: str, revision: str | None) -> tuple[ModelFolder, str, str]:
    if name.startswith("file:"):
        folder = Path(name.removeprefix("file:")).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; 'file:' wants a Hugging Face model folder")
        return read_model_folder(folder), f"Hugging Face model folder {folder.name}", "see the source"
    if name.startswith("hf:"):
        folder = hub_folder(name.removeprefix("hf:"), revision)
        return read_model_folder(folder), f"{name} at commit {folder.name}", "see the model card"
    found = entry(name)
    source = ModelFolder(
        architecture=architecture(found.architecture),
        table=found.table,
        preprocess=found.preprocess,
        arrays=found.read(),
    )
    return source, found.description, found.licence


def _resized(preprocess: Preprocess, size: int) -> Preprocess:
    """Ask for another size, the margin of the crop kept in proportion."""
    resize = None if preprocess.resize is None else round(preprocess.resize * size / preprocess.size)
    return dataclasses.replace(preprocess, size=size, resize=resize)
