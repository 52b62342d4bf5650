"""The report of a job: one page of HTML that needs nothing else, and the same numbers in Markdown.

A report is made of plain values, so that it can be written again from a JSON file:

    title, subtitle: text
    starts: [{started, argv, python, platform, packages, devices, cpu_count, git}], as `tljax.environment` has them
    model: name, description, licence, num_params, image_size, stages, hash_before, hash_after (of the frozen backbone)
    data: name, num_images, class_names, class_counts, licence, splits: [{kind, repeats, train, val, test, description}]
    evaluations: [{method, features, depth or None, split, repeat, n_test, chosen: {name: value},
                   metrics: {accuracy, ...} (see stats.METRICS; None where not defined),
                   by_group: {group: the same metrics}, confusion: rows of true, columns of predicted classes}]
    references: [{method, features, split, metric, value, sd or None, source}]
    curves: [{split, repeat, step, train_loss, val_step, val_accuracy, learning_rate}], the last five as lists
    examples: {wrong: [{png (base64), name, truth, predicted, probability}], right: the same, caption}
    partition: [{stage, num_params, is_trained, learning_rate, weight_decay}]
    timing: [{name, seconds, detail}]
    notes: [text]
    reading: {maps: [{kind ("pca" or "tsne"), features, points: [[x, y]], explained: two shares, of PCA only}],
              labels and names of the mapped images,
              neighbours: {features, rows: [{jpeg (base64), name, truth, predicted or None,
                                             found: [{jpeg, name, truth, cosine}]}]},
              patches: None, or {stage, whole, size: [h, w], rows: [{name, truth, jpeg, to_whole: [h w],
                                 patches: [{letter, place: [row, column], cosines: [h w]}]}]},
              has_predictions}
"""

import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from tljax.ablation import figures, headline
from tljax.ablation.reading_figures import draw_maps, draw_patches
from tljax.ablation.stats import METRICS, Estimate, Row, make_rows
from tljax.paths import did_you_mean
from tljax.rundir import write_bytes

REQUIRED = ("title", "subtitle", "starts", "model", "data", "evaluations")
# Parts that a job may not have; their sections are left out.
OPTIONAL = {"references": [], "curves": [], "examples": {}, "partition": [], "timing": [], "notes": [], "reading": {}}
FOLDER = Path(__file__).parent


def write_report(data: dict[str, Any], directory: str | os.PathLike) -> tuple[Path, Path]:
    """Write `report.html` and `report.md`.

    Args:
        data: the parts listed at the top of this module; those after the evaluations may be left out.
        directory: an existing folder.

    Returns:
        The paths of the HTML and of the Markdown file.

    Raises:
        ValueError: a part is missing or not known, the backbone has no hash, an evaluation is there twice or
            names a split that "data" does not list.
    """
    context = make_context(data)
    written = []
    for name in ("report.html", "report.md"):
        path = Path(directory) / name
        write_bytes(path, _templates().get_template(f"{name}.jinja").render(context).encode())
        written.append(path)
    return written[0], written[1]


def make_context(data: Mapping[str, Any]) -> dict[str, Any]:
    """Compute all that the templates print."""
    _check(data)
    data = {**OPTIONAL, **data}
    splits = [split["kind"] for split in data["data"]["splits"]]
    rows = make_rows(data["evaluations"])
    overlaps = {split["kind"]: split["test"] / split["train"] for split in data["data"]["splits"]}
    spotlight = headline.choose_spotlight(rows, overlaps)
    model, counts = data["model"], data["data"]["class_counts"]
    baseline = max(counts) / sum(counts)
    return {
        **data,
        "splits": splits,
        "metrics": METRICS,
        "rows": rows,
        "methods": {method: list(members) for method, members in itertools.groupby(rows, lambda row: row.method)},
        "groups": sorted({group for one in data["evaluations"] for group in one["by_group"]}),
        "is_frozen": model["hash_before"] == model["hash_after"],
        "baseline": baseline,
        "compared": headline.compared(rows, splits, model["name"], data["data"]["name"]),
        "verdict": headline.verdict(spotlight),
        "evidence": headline.evidence(spotlight),
        "differences": {metric: headline.differences(spotlight, metric) for metric in METRICS},
        "references": [{**one, "ours": _ours(one, rows)} for one in data["references"]],
        "spotlight": spotlight,
        "interval_charts": figures.draw_intervals(rows, splits, data["references"], baseline),
        "depth_charts": figures.draw_depths(rows, splits),
        "curve_charts": figures.draw_curves(data["curves"], splits),
        "curve_ends": figures.last_values(data["curves"]),
        "confusion_charts": figures.draw_confusions(spotlight, splits, data["data"]["class_names"]),
        "map_charts": draw_maps(data["reading"], data["data"]["class_names"]) if data["reading"] else [],
        "patch_charts": draw_patches(data["reading"]) if data["reading"] else [],
        "choices": [(row, [_chosen(row, split) for split in splits]) for row in rows if any(map(row.chosen, splits))],
        "num_trained": sum(one["num_params"] for one in data["partition"] if one["is_trained"]),
        "num_seconds": sum(one["seconds"] for one in data["timing"]),
        "longest_seconds": max([one["seconds"] for one in data["timing"]], default=0),
        "command": shlex.join(data["starts"][-1]["argv"]),
        "environments": _environments(data["starts"]),
        "style": (FOLDER / "report.css").read_text(),
    }


def _check(data: Mapping[str, Any]) -> None:
    known = [*REQUIRED, *OPTIONAL]
    problems = [f"{key!r} is missing" for key in REQUIRED if key not in data]
    problems += [f"{key!r} is not known{did_you_mean(key, known)}" for key in data if key not in known]
    if problems:
        raise ValueError(f"cannot report: {'; '.join(problems)}; the parts are {known}")
    # Two empty hashes are equal, and would pass for the proof that nothing changed.
    if not (data["model"]["hash_before"] and data["model"]["hash_after"]):
        raise ValueError("model.hash_before and model.hash_after must be hashes of the backbone; one is empty")
    listed = [split["kind"] for split in data["data"]["splits"]]
    strangers = sorted({one["split"] for one in data["evaluations"]} - set(listed))
    if strangers:
        raise ValueError(f"evaluations name the splits {strangers}, data.splits lists {listed}; add them there")


def _environments(starts: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """Gather the times of the starts in each environment: a job can be taken up again with other versions."""
    found: list[tuple[dict[str, Any], list[str]]] = []
    for start in starts:
        here = {key: value for key, value in start.items() if key not in ("started", "argv")}
        times = next((times for there, times in found if there == here), None)
        if times is None:
            found.append((here, [start["started"]]))
        else:
            times.append(start["started"])
    return found


def _ours(reference: Mapping[str, Any], rows: Sequence[Row]) -> Estimate | None:
    """Return our estimate of what a reference measured; None where this job did not."""
    for row in rows:
        if (row.method, row.features) == (reference["method"], reference["features"]):
            return row.estimate(reference["split"], reference["metric"])
    return None


def _chosen(row: Row, split: str) -> str:
    return "; ".join(f"{text} (n = {n})" for text, n in row.chosen(split))


def _templates() -> jinja2.Environment:
    """Set up the templates: everything in the HTML is escaped, and a name that is not defined is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": headline.number,
        "signed": headline.signed,
        "interval": headline.interval,
        "method": headline.method_name,
        "duration": duration,
        "cell": cell,
    }
    return found


def duration(seconds: int | float) -> str:
    """Write a time in the largest units that keep it readable."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def cell(value: Any) -> str:
    """Escape what has a meaning in a cell of a Markdown table."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
