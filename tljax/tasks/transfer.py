"""Transfer: both roads on the same splits, compared in one report."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.ablation.report import write_report
from tljax.tasks import extract, finetune, probe
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.sections import call, check_keys
from tljax.tasks.summary import summarise

NAME = "transfer"

# What each part of the comparison reads of the config: its own run directory is finished or not by these alone.
_SECTIONS = {
    extract.NAME: ("seed", "cache_dir", "model", "data", "features"),
    probe.NAME: (
        "seed", "cache_dir", "model", "data", "split", "features", "evaluate", "probe", "logistic", "knn", "mlp",
    ),
    finetune.NAME: (
        "seed", "cache_dir", "model", "data", "split", "prefix", "groups", "optimizer", "finetune", "evaluate",
    ),
}  # fmt: skip

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


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Extract, probe, fine-tune and report; idempotent and resumable."""
    workdir = Path(workdir)
    found = rundir.begin(workdir, NAME, config)
    return found if found is not None else _work(config, workdir)


def _work(config: Mapping[str, Any], workdir: Path) -> dict[str, float]:
    comparison = call("compare", config, Comparison)
    inputs = open_inputs(config)
    _part(config, workdir / "extract", extract.NAME, extract.work, inputs)
    runs: dict[str, list[Path]] = {probe.NAME: [], finetune.NAME: []}
    for kind in comparison.kinds:
        for repeat in range(comparison.probe_repeats):
            chosen = {**config, "split": {**config["split"], "kind": kind, "repeat": repeat}}
            folder = f"{kind}_{repeat}"
            runs[probe.NAME].append(_part(chosen, workdir / "probe" / folder, probe.NAME, probe.work, inputs))
            if repeat < comparison.finetune_repeats:
                runs[finetune.NAME].append(
                    _part(chosen, workdir / "finetune" / folder, finetune.NAME, finetune.work, inputs)
                )
    data = summarise(config, comparison.title, comparison.references, workdir, inputs, runs)
    write_report(data, workdir)
    result: dict[str, float] = {"seconds": sum(row["seconds"] for row in data["timing"])}
    for record in data["evaluations"]:
        name = f"{record['method']}/{record['features']}/{record['split']}_{record['repeat']}/accuracy"
        result[name] = record["metrics"]["accuracy"]
    rundir.write_json(workdir / rundir.DONE, result)
    return result


def _part(
    config: Mapping[str, Any],
    workdir: Path,
    name: str,
    work: Callable[[Mapping[str, Any], Path, Inputs], dict[str, float]],
    inputs: Inputs,
) -> Path:
    """Run one part in its own directory, unless it is finished."""
    missing = [section for section in _SECTIONS[name] if section not in config]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}, which {name} needs")
    part = {section: config[section] for section in _SECTIONS[name]}
    if rundir.begin(workdir, name, part) is None:
        log.info("%s", workdir)
        work(part, workdir, inputs)
    return workdir
