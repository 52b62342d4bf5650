"""ELPV: 2,624 electroluminescence images of solar cells with the probability that each is defective."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, Int32, Int64, Shaped
from rich.progress import track

from tljax.data.digest import ImageDigest
from tljax.paths import did_you_mean

FIX_WHEEL = "pip install elpv-dataset==1.0.0.post1"
FIX_FILES = "remove this folder and open the data set again"
LICENCE = "CC-BY-NC-SA-4.0"
SPLIT = "train"  # the data has no published split; TFDS wants one name

# The four probabilities are 0, 1/3, 2/3 and 1: thirds count them.
TASKS = {
    "binary": ("functional", "defective"),
    "four_class": ("p_0", "p_1/3", "p_2/3", "p_1"),
}
# Deitsch et al. 2019, Solar Energy 185: confidence in the binary label, by thirds of the probability.
CONFIDENCE = (1.0, 1 / 3, 2 / 3, 1.0)
# 2,624 cells from 44 modules, 18 monocrystalline and 26 polycrystalline (the same paper): about 60 cells each.
CELLS_PER_MODULE = 60
CELLS = 2624

log = logging.getLogger(__name__)


class Elpv(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds ELPV from the files of the wheel `elpv-dataset`.

    The images and labels are licensed CC-BY-NC-SA-4.0: not for commercial use, and not part of tljax.

    Source: Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in
    Electroluminescence Imagery, EU PVSEC 2018; github.com/zae-bayern/elpv-dataset.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From elpv-dataset 1.0.0.post1."}  # noqa: RUF012 (the name is TFDS's)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(300, 300, 1), encoding_format="png"),
            "index": np.int64,
            "name": tfds.features.Text(),
            "probability": np.float32,
            "cell_type": tfds.features.Text(),
            "block": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), license=LICENCE)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the files came with the wheel
        return {SPLIT: self._generate_examples(find_files())}

    def _generate_examples(self, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
        blocks = module_blocks(np.array([cell_type for _, _, cell_type in rows]))
        for index, (name, probability, cell_type) in enumerate(rows):
            example = {
                "image": folder / name,
                "index": index,
                "name": name,
                "probability": float(probability),
                "cell_type": cell_type,
                "block": blocks[index],
            }
            yield index, example


@dataclass(frozen=True, kw_only=True, eq=False)
class ElpvSource:
    """Prepared ELPV in the order of labels.csv, with the labels of one task; `elpv_source` makes it."""

    task: str
    records: Any  # TFDS data source, in its own order
    order: Int64[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, " n"]
    columns: dict[str, np.ndarray]
    fingerprint: str

    @property
    def name(self) -> str:
        """Data set and task."""
        return f"elpv/{self.task}"

    @property
    def licence(self) -> str:
        """Of the images and labels."""
        return LICENCE

    @property
    def targets(self) -> None:
        """None: one class each."""
        return None

    @property
    def is_multi_label(self) -> bool:
        """No: one class each."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the task."""
        return TASKS[self.task]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int | np.integer) -> dict[str, Any]:
        record = self.records[self.order[index]]
        return {"image": record["image"], "name": record["name"].decode()}


def elpv_source(root: str | os.PathLike, task: str) -> ElpvSource:
    """Open ELPV, prepared under `root` on first use.

    Args:
        root: data folder of TFDS; the prepared files go to `root/elpv/1.0.0`.
        task: "binary" (defective is a probability of at least 1/2; weights are the confidence in that label)
            or "four_class" (one class per probability; weights are 1).

    Raises:
        ValueError: the task is not known, or the prepared files are not array_record or not complete.
        ModuleNotFoundError: the files are not prepared and the wheel is not installed.
    """
    if task not in TASKS:
        raise ValueError(f"no ELPV task {task!r}{did_you_mean(task, TASKS)}; known: {sorted(TASKS)}")
    records = _open_records(root)
    order, examples = _read_in_order(records)
    digest = ImageDigest()
    for example in examples:
        digest.update(example["image"])
    thirds = np.rint([3 * example["probability"] for example in examples]).astype(np.int32)
    is_binary = task == "binary"
    return ElpvSource(
        task=task,
        records=records,
        order=order,
        labels=(thirds >= 2).astype(np.int32) if is_binary else thirds,
        weights=np.array(CONFIDENCE, np.float32)[thirds] if is_binary else np.ones(len(thirds), np.float32),
        columns={
            "probability": np.array([example["probability"] for example in examples]),
            "cell_type": np.array([example["cell_type"].decode() for example in examples]),
            "block": np.array([example["block"] for example in examples]),
        },
        fingerprint=digest.hexdigest(),
    )


def find_files() -> Path:
    """Return the folder of labels.csv and images/ in the wheel `elpv-dataset`, without importing it.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the ELPV images come with the package elpv-dataset, which is not installed: {FIX_WHEEL}"
        )
    return Path(spec.origin).parent / "data"


def module_blocks(cell_types: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the blocks of cells that very probably come from one module.

    The published data has no module id, but cells stand in module order: every run of one type is cut into
    equal blocks of about 60 cells, which gives the published numbers of modules.
    """
    blocks: list[np.ndarray] = []
    for _, run in groupby(range(len(cell_types)), key=lambda position: cell_types[position]):
        cells = list(run)
        blocks += np.array_split(cells, max(1, round(len(cells) / CELLS_PER_MODULE)))
    return np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])


def _open_records(root: str | os.PathLike) -> Any:
    """Open the prepared files as a TFDS data source, preparing them when they are not there."""
    builder = Elpv(data_dir=os.fspath(root))
    if not builder.is_prepared():
        _prepare(builder)
    prepared = tfds.builder_from_directory(builder.data_dir)
    file_format = prepared.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(f"{builder.data_dir} is in {file_format}, wanted array_record for random access; {FIX_FILES}")
    # The decorator of as_data_source hides its parameters from pyright.
    return prepared.as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})  # pyright: ignore[reportCallIssue]


def _read_in_order(records: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Read every example; return the record number of each and the examples, in the order of labels.csv."""
    folder = records.dataset_info.data_dir
    try:
        examples = list(track(records, "reading ELPV", transient=True))
    except RuntimeError as error:
        raise ValueError(f"cannot read the prepared files in {folder} ({error}); {FIX_FILES}") from error
    indices = np.array([example["index"] for example in examples])
    order = np.argsort(indices)
    # TFDS counts what its metadata promises, not what is in the files.
    if not np.array_equal(indices[order], np.arange(CELLS)):
        raise ValueError(f"{folder} holds {len(indices)} examples, wanted {CELLS}; {FIX_FILES}")
    return order, [examples[position] for position in order]


def _prepare(builder: Elpv) -> None:
    find_files()  # before TFDS, which wraps errors of its generators
    log.info("preparing ELPV in %s", builder.data_dir)
    # The default asks a Google bucket for prepared files first.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except OSError:
        # TFDS renames a finished folder into place, which fails when another process was faster.
        if not builder.is_prepared():
            raise
