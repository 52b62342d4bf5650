"""Export: a fine-tuned run, a soup of them, or any weights that load, for other programs."""

import logging
from pathlib import Path

from tljax import rundir
from tljax.paths import did_you_mean
from tljax.tasks.card import hub_header, write_card
from tljax.tasks.finished import is_run, open_finished
from tljax.tasks.restore import restore
from tljax.tasks.stablehlo import write_stablehlo
from tljax.weights import Pretrained, load
from tljax.weights.write import PUBLISHERS, export

STABLEHLO, HUGGING_FACE = "stablehlo", "hf"
# The card of a run; the hub shows that of the second name.
CARD, HUB_CARD = "card.md", "README.md"

log = logging.getLogger(__name__)


def export_model(source: str, *, format: str, to: str | Path) -> Path:
    """Write a model as a program for JAX alone, or for transformers, timm, torchvision or Google's npz readers.

    Args:
        source: directory of a finished `tljax finetune` or `tljax soup` run, or a name as `tljax.load` takes it.
        format: "stablehlo", see `tasks.stablehlo`, or see `weights.write.export`. The card of a run goes with it.
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
    formats = (STABLEHLO, *PUBLISHERS)
    if format not in formats:
        raise ValueError(
            f"no export format {format!r}{did_you_mean(format, formats)}; formats are {', '.join(formats)}"
        )
    card = write_card(Path(source)) if is_run(source) else None
    model = _write_stablehlo(folder, source) if format == STABLEHLO else _write_layout(folder, source, format)
    if card is not None and format == HUGGING_FACE:
        rundir.write_bytes(folder / HUB_CARD, (hub_header(Path(source)) + card).encode())
    elif card is not None:
        rundir.write_bytes(folder / CARD, card.encode())
    log.info("%s is in %s, as %s", model.description, folder, format)
    return folder


def _write_stablehlo(folder: Path, source: str) -> Pretrained:
    model = open_finished(source)
    write_stablehlo(folder, model)
    return model.pretrained


def _write_layout(folder: Path, source: str, format: str) -> Pretrained:
    model = restore(source) if is_run(source) else load(source)
    export(
        folder, format=format, architecture=model.net.architecture, params=model.params, stats=model.stats,
        preprocess=model.preprocess, class_names=model.class_names,
    )  # fmt: skip
    return model
