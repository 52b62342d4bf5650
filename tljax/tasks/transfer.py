"""Transfer: both roads on the same splits, compared in one report."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tljax import rundir
from tljax.ablation.report import write_report
from tljax.tasks import extract, finetune, probe
from tljax.tasks.evaluation import check_single_label
from tljax.tasks.execution import identity_of
from tljax.tasks.inputs import Inputs
from tljax.tasks.reading import Reading, check_reading, read_features_for_report
from tljax.tasks.running import run_task
from tljax.tasks.sections import call, call_optional, check_keys, select
from tljax.tasks.summary import summarise

NAME = "transfer"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`config.compare`: which splits, and how often.

    Args:
        kinds: of splits; see `inputs.make_split`.
        probe_repeats: splits of each kind on which the probes are fitted.
        finetune_repeats: how many of them, from the first, the fine-tuning runs on too.
        title: of the report.
        references: independent results to show beside ours, as `write_report` takes them, each with the name of the
            "data" it is for.
    """

    kinds: Sequence[str]
    probe_repeats: int
    finetune_repeats: int
    title: str
    references: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        """Refuse what could only fail when the report is written."""
        if not 0 <= self.finetune_repeats <= self.probe_repeats or self.probe_repeats < 1:
            raise ValueError(
                f"config.compare: probe_repeats is {self.probe_repeats} and finetune_repeats {self.finetune_repeats}; "
                "wanted at least 1 split for the probes, and fine-tuning on no more of them"
            )
        needed = ("data", "method", "features", "split", "metric", "value", "sd", "source")
        for reference in self.references:
            check_keys("config.compare.references", reference, needed, needed)


class Part(NamedTuple):
    """A run of another task that the comparison needs, in a directory of its own."""

    task: str
    config: dict[str, Any]
    folder: Path


_WORK = {extract.NAME: extract.work, probe.NAME: probe.work, finetune.NAME: finetune.work}


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Extract, probe, fine-tune and report; idempotent and resumable.

    Each part has a run directory of its own, so a comparison with another `config.compare` reuses those that it
    shares with the last one.
    """
    # Before a finished comparison gives way to one that a part would refuse.
    for part in _parts(config, Path(workdir)):
        rundir.find(part.folder, part.task, identity_of(select(part.task, part.config)))
    return run_task(NAME, work, config, workdir, has_parts=True)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Run the parts that are not finished, and write the report."""
    check_single_label(inputs.source, f"`tljax {NAME}`")
    comparison = call("compare", config, Comparison)
    reading = call_optional("reading", config, Reading, None)
    if reading is not None:
        check_reading(reading, config, inputs)
    runs: dict[str, list[Path]] = {task: [] for task in _WORK}
    for part in _parts(config, workdir):
        log.info("%s", part.folder)
        run_task(part.task, _WORK[part.task], part.config, part.folder, inputs=inputs)
        runs[part.task].append(part.folder)
    data = summarise(config, comparison.title, comparison.references, workdir, inputs, runs)
    if reading is not None:
        started = time.monotonic()
        data["reading"] = read_features_for_report(reading, config, inputs, runs[finetune.NAME])
        seconds = time.monotonic() - started
        data["timing"].append(
            {"name": "reading the features", "seconds": seconds, "detail": "maps, neighbours, patches"}
        )
    write_report(data, workdir)
    result: dict[str, float] = {"seconds": sum(row["seconds"] for row in data["timing"])}
    for record in data["evaluations"]:
        name = f"{record['method']}/{record['features']}/{record['split']}_{record['repeat']}/accuracy"
        result[name] = record["metrics"]["accuracy"]
    return result


def _parts(config: Mapping[str, Any], workdir: Path) -> Iterator[Part]:
    """List the runs of a comparison in their order."""
    select(NAME, config)
    comparison = call("compare", config, Comparison)
    repeats = {probe.NAME: comparison.probe_repeats, finetune.NAME: comparison.finetune_repeats}
    yield Part(extract.NAME, dict(config), workdir / extract.NAME)
    for kind in comparison.kinds:
        for repeat in range(comparison.probe_repeats):
            chosen = {**config, "split": {**config["split"], "kind": kind, "repeat": repeat}}
            for task in repeats:
                if repeat < repeats[task]:
                    yield Part(task, chosen, workdir / task / f"{kind}_{repeat}")
