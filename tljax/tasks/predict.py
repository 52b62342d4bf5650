"""Predict: classes and probabilities of image files, the bad ones named."""

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tljax.data.unlabelled import FileList, find_images, spool
from tljax.tasks.prediction_files import STDOUT, open_writer
from tljax.tasks.predictor import Predictor

# The exit status where some images could not be predicted, and all others were.
SOME_BAD = 3
# In place of a path: paths come from standard input, one a line.
STDIN = "-"

log = logging.getLogger(__name__)


def predict_files(
    source: str, images: Sequence[str], *, to: str, top: int | None, lines: Iterable[str], settings: Mapping[str, int]
) -> int:
    """Predict image files and write the results.

    Args:
        source: directory of a finished run, or weights by name.
        images: files; folders, whose image files are taken; "-" for the paths in `lines`.
        to: see `prediction_files.open_writer`.
        top: likewise.
        lines: paths, one a line.
        settings: of the `Predictor`.

    Returns:
        The exit status: 0, or `SOME_BAD`.

    Raises:
        ValueError: there are no images, or none of them can be used; nothing is written then.
        OSError: a folder cannot be read, or the results cannot be written.
    """
    if top is not None and top < 1:
        raise ValueError(f"--top={top}, wanted at least 1")
    predictor = Predictor.open(source, **settings)
    if top is not None:
        top = min(top, len(predictor.class_names))
    log.info("%s: %s", predictor.model.pretrained.description, predictor.model.describe_calibration())
    with tempfile.TemporaryDirectory(prefix="tljax") as folder:
        files = spool(_list(images, lines), folder)
        num_bad = _predict(predictor, files, to, top)
    if num_bad:
        log.warning("%d of %d images could not be used, the others are predicted", num_bad, files.count)
    return SOME_BAD if num_bad else 0


def _list(images: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield paths one by one; a folder without images is an error, a file that is not there is a bad image."""
    for name in images:
        if name == STDIN:
            yield from filter(None, (line.rstrip("\r\n") for line in lines))
        elif os.path.isdir(name):
            is_empty = True
            for path in find_images(name):
                is_empty = False
                yield path
            if is_empty:
                raise ValueError(f"the folder {name} has no images in it, by the endings of their names")
        else:
            yield name


def _predict(predictor: Predictor, files: FileList, to: str, top: int | None) -> int:
    """Write the predictions; return the number of bad images."""
    num_bad = 0
    bar = {"total": files.count, "console": Console(stderr=True), "transient": True}
    with open_writer(to, predictor.model, top) as writer:
        for name, row, problem in track(_each(predictor, files), "predicting", **bar):
            if problem is None:
                writer.add(name, row)
                continue
            num_bad += 1
            writer.add_bad(name, problem)
            log.warning("bad image %s: %s", name, problem)
        if num_bad == files.count:
            raise ValueError(f"none of the {num_bad} images could be used, so nothing is written")
    if to != STDOUT:
        log.info("%d predictions are in %s", files.count - num_bad, Path(to))
    return num_bad


def _each(predictor: Predictor, files: FileList) -> Iterator[tuple]:
    for found in predictor.stream(files, files.count):
        yield from zip(found.names, found.probabilities, found.problems, strict=True)
