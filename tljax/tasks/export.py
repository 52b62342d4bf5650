"""Export: a fine-tuned run, a soup of them, or any weights that load, in the layout of another project."""

import logging
from pathlib import Path

from tljax import rundir
from tljax.tasks.restore import restore
from tljax.weights import Pretrained, load
from tljax.weights.write import export

log = logging.getLogger(__name__)


def export_model(source: str, *, format: str, to: str | Path) -> Path:
    """Write a model for transformers, timm, torchvision or Google's npz readers.

    Args:
        source: directory of a finished `tljax finetune` or `tljax soup` run, or a name as `tljax.load` takes it.
        format: see `weights.write.export`.
        to: folder to write to.

    Raises:
        ValueError: the format cannot express this net, or the folder holds other files.
        FileNotFoundError: the source is not there.
    """
    folder = Path(to)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to={folder} is a file, wanted a folder")
    held = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    if held:
        raise ValueError(f"--to={folder} holds {', '.join(held[:5])}; choose an empty or a new folder")
    model = _open(source)
    export(
        folder, format=format, architecture=model.net.architecture, params=model.params, stats=model.stats,
        preprocess=model.preprocess, class_names=model.class_names,
    )  # fmt: skip
    log.info("%s is in %s, in the layout of %s", model.description, folder, format)
    return folder


def _open(source: str) -> Pretrained:
    workdir = Path(source)
    # Folders of transformers and timm have a file with the name of rundir.CONFIG too.
    if (workdir / rundir.ENV).is_file():
        return restore(workdir)
    return load(source)
