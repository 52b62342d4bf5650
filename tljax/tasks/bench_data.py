"""`tljax bench data`: where the time of the input goes on this machine, and what to change."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.data.augment import Augment, Preparation
from tljax.data.image_cache import CacheRoom, Images
from tljax.data.pipeline import before_changes
from tljax.data.sample import Sample
from tljax.data.workers import check_num_workers, num_cores
from tljax.finetune.devices import put_inputs
from tljax.tasks.execution import execution_of
from tljax.tasks.input_advice import Findings, advise
from tljax.tasks.input_speeds import Work, decode_only, limit_rate, load_only, part_rates, pipeline_rate
from tljax.tasks.inputs import make_split, open_inputs
from tljax.tasks.recipe import Recipe
from tljax.tasks.sections import call
from tljax.tasks.speeds import free_bytes
from tljax.tasks.training import mesh_of

# Of the training images; a pass over them is long enough to time, and short enough to wait for.
SAMPLE_BATCHES = 16
LEAST_SAMPLE = 512
SIZED_IMAGES = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the command.

    Args:
        num_workers: numbers of worker processes to measure; None for 0, 1, 2, 4 and so on up to the number of cores.
        seconds: of each measurement.

    Raises:
        ValueError: a number out of range.
    """

    num_workers: tuple[int, ...] | None = None
    seconds: float = 3.0

    def __post_init__(self) -> None:
        for number in self.num_workers or ():
            check_num_workers(number)
        if self.seconds <= 0:
            raise ValueError(f"--seconds is {self.seconds}, wanted more than 0")

    @property
    def tried(self) -> list[int]:
        """The numbers of workers, ascending."""
        cores = num_cores()
        powers = [0, *(2**exponent for exponent in range(16) if 2**exponent < cores), cores]
        return sorted(set(powers if self.num_workers is None else self.num_workers))


def bench_data(config: Mapping[str, Any], settings: Settings) -> str:
    """Measure the input of a config; return the table and what to change.

    Args:
        config: of a fine-tuning run.
        settings: how to measure.

    Raises:
        ValueError: the config does not fit.
        OSError: no room for a cache of the sample on the disk of `config.cache_dir`.
    """
    inputs = open_inputs(config)
    recipe, augment = call("finetune", config, Recipe), call("augment", config, Augment)
    split = call("split", config, make_split, inputs.source, config["seed"])
    work = Work(preprocess=inputs.pretrained.preprocess, augment=augment, batch_size=recipe.batch_size)
    size = min(len(split.train), max(LEAST_SAMPLE, SAMPLE_BATCHES * work.batch_size))
    indices = np.random.default_rng(0).permutation(split.train)[:size]
    sample, mesh = Sample(source=inputs.source, indices=indices), mesh_of(config)

    def put(batch: Mapping[str, np.ndarray]) -> Any:
        return jax.block_until_ready(put_inputs(batch, mesh))

    log.info("%d of %d training images, about %.0f s", size, len(split.train), _duration_s(settings))
    parts = part_rates(sample, work, put, settings.seconds)
    processes = max(1, *settings.tried)
    whole = partial(pipeline_rate, sample, work, put, settings.seconds)
    cold, warm = {}, {}
    Path(config["cache_dir"]).mkdir(parents=True, exist_ok=True)
    for number in settings.tried:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=config["cache_dir"]) as folder:
            room = CacheRoom(directory=Path(folder), budget_bytes=free_bytes(folder))
            cold[number] = whole(num_workers=number, room=room, is_one_epoch=True)
            warm[number] = whole(num_workers=number, room=room)
    findings = Findings(
        parts=parts,
        decode_limit=limit_rate(partial(decode_only, sample=sample), size, processes, settings.seconds),
        work_limit=limit_rate(partial(load_only, sample=sample, work=work), size, processes, settings.seconds),
        whole={number: whole(num_workers=number) for number in settings.tried},
        cold=cold,
        warm=warm,
        num_processes=processes,
        num_cores=num_cores(),
        execution=execution_of(config),
        short_side=_short_side(sample),
        wanted_side=min(work.preprocess.shape[:2]),
        cache_gb=_cache_bytes(sample, work) * len(inputs.source) / size / 1e9,
        free_gb=free_bytes(config["cache_dir"]) / 1e9,
        is_stored=recipe.is_cached,
    )
    return f"{_table(findings)}\n\n" + "\n".join(advise(findings))


def _duration_s(settings: Settings) -> float:
    return settings.seconds * (8 + 3 * len(settings.tried)) + 5


def _short_side(sample: Sample) -> int:
    """Return the median over a few images."""
    return int(np.median([min(image.shape[:2]) for image in _some(sample, None)]))


def _cache_bytes(sample: Sample, work: Work) -> float:
    """Estimate the size of the cache of the sample."""
    kept = _some(sample, before_changes(work.augment, work.preprocess))
    return float(np.mean([image.nbytes for image in kept])) * len(sample)


def _some(sample: Sample, preprocess: Preparation | None) -> list[np.ndarray]:
    images = Images(source=sample, preprocess=preprocess, cache=None)
    return [images[index] for index in range(min(SIZED_IMAGES, len(sample)))]


def _table(findings: Findings) -> str:
    rows: list[Sequence[str]] = [("part", "processes", "images/s", "ms an image")]
    rows += [(name, "1", *_numbers(rate)) for name, rate in findings.parts.items()]
    count = str(findings.num_processes)
    rows.append(("limit: read and decode alone", count, *_numbers(findings.decode_limit)))
    rows.append(("limit: read, decode, augment", count, *_numbers(findings.work_limit)))
    kinds = {"whole": findings.whole, "whole, empty cache": findings.cold, "whole, full cache": findings.warm}
    for name, rates in kinds.items():
        rows += [(name, _workers(number), *_numbers(rate)) for number, rate in rates.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def _workers(number: int) -> str:
    return f"{number} workers" if number else "threads"


def _numbers(rate: float) -> tuple[str, str]:
    return f"{rate:.0f}", f"{1000 / rate:.3f}"
