"""Calibration of a run: a temperature from its validation images, and what that does to its test images."""

from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.ablation.picture import write_picture
from tljax.ablation.reliability_chart import reliability_chart
from tljax.calibration import NUM_BINS, SIGMOID, Fit, calibration_report, fit_temperature
from tljax.data.sources import Source
from tljax.tasks.evaluation import kind_of, targets_of

# In the run directory.
CALIBRATION, RELIABILITY = "calibration.json", "reliability.svg"

Scores = tuple[np.ndarray, np.ndarray]


def calibrate(workdir: Path, source: Source, of_val: Scores, of_test: Scores) -> None:
    """Fit a temperature to validation images; write it with its effect on them and on the test images.

    Args:
        workdir: of the run.
        source: the data.
        of_val: indices and scores of the validation images; there may be none.
        of_test: those of the test images, which are reported on and never fitted to.
    """
    kind = kind_of(source)
    if len(of_val[0]):
        fit = fit_temperature(of_val[1], targets_of(source, of_val[0]), kind)
    else:
        fit = Fit(temperature=None, problem="the split has no validation images; set split.val_fraction")
    parts = {"val": of_val, "test": of_test}
    reports = {name: _report(source, scores, fit, kind) for name, scores in parts.items() if len(scores[0])}
    record = {"kind": kind, "temperature": fit.temperature, "problem": fit.problem, "num_bins": NUM_BINS, **reports}
    rundir.write_json(workdir / CALIBRATION, record)
    write_picture(workdir / RELIABILITY, _picture(record))


def _report(source: Source, scores: Scores, fit: Fit, kind: str) -> dict[str, Any]:
    targets = targets_of(source, scores[0])
    report = {"num_images": len(scores[0]), "before": calibration_report(scores[1], targets, kind)}
    if fit.temperature is not None:
        report["after"] = calibration_report(scores[1], targets, kind, fit.temperature)
    return report


def _picture(record: dict[str, Any]) -> str:
    test = record["test"]
    series = {
        f"{when}, ECE {test[key]['ece']:.3f}": test[key]["bins"]
        for key, when in (("before", "as trained"), ("after", "calibrated"))
        if key in test
    }
    claim, share = ("probability of a label", "share of images that have it") if record["kind"] == SIGMOID else (
        "probability of the predicted class", "share of images that are of it"
    )  # fmt: skip
    return reliability_chart(f"Reliability on {test['num_images']} test images", series, (claim, share))


def read_calibration(workdir: Path) -> dict[str, Any]:
    """Return what `calibrate` wrote.

    Raises:
        FileNotFoundError: it wrote nothing.
    """
    path = workdir / CALIBRATION
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} has no {CALIBRATION}: the run was made before runs were calibrated; remove {rundir.DONE} and "
            "run its command again, which only evaluates"
        )
    return rundir.read_json(path)
