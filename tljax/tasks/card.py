"""The model card of a finished run: what its own records say, and what they do not."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tljax import rundir
from tljax.metrics import bootstrap_intervals
from tljax.tasks.calibrating import CALIBRATION
from tljax.tasks.card_limits import limits
from tljax.tasks.facts import FACTS
from tljax.tasks.inputs import CLASSES

# What a config says of how a net was trained, by section.
_RECIPE = (
    "groups", "lora", "optimizer", "schedule", "loss", "augment", "mix", "regularise", "penalties",
    "relative_gradients", "phases", "finetune", "prefix", "soup",
)  # fmt: skip
MISSING = "not recorded"


def write_card(workdir: Path) -> str:
    """Return the card as Markdown.

    Raises:
        FileNotFoundError: the directory holds no finished run.
    """
    template = resources.files("tljax.tasks").joinpath("card.md.jinja").read_text()
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )  # fmt: skip
    environment.filters |= {"cell": _cell, "number": _number}
    return environment.from_string(template).render(**gather(workdir))


def gather(workdir: Path) -> dict[str, Any]:
    """Return what the template shows, from the files of a run; None for what was not recorded."""
    for name in (rundir.CONFIG, rundir.DONE, CLASSES):
        if not (workdir / name).is_file():
            raise FileNotFoundError(
                f"{workdir} has no {name}: it is no finished run of `tljax finetune` or `tljax soup`"
            )
    config = rundir.read_json(workdir / rundir.CONFIG)
    record = _evaluation(workdir)
    confusion = record.get("confusion") if record else None
    found: dict[str, Any] = {
        "task": config["task"],
        "config": config["config"],
        "recipe": {name: config["config"][name] for name in _RECIPE if name in config["config"]},
        "class_names": rundir.read_json(workdir / CLASSES),
        "done": rundir.read_json(workdir / rundir.DONE),
        "inputs": _read(workdir, rundir.INPUTS),
        "facts": _read(workdir, FACTS),
        "partition": _read(workdir, "partition.json"),
        "calibration": _read(workdir, CALIBRATION),
        "starts": rundir.starts(workdir),
        "record": record,
        "intervals": bootstrap_intervals(np.asarray(confusion)) if confusion else {},
        "classes": None if confusion is None else _by_class(np.asarray(confusion)),
        "missing": MISSING,
        "dump": json.dumps,
    }
    found["weights"] = _weights(found)
    return {**found, "limits": limits(found)}


def _read(workdir: Path, name: str) -> Any:
    return rundir.read_json(workdir / name) if (workdir / name).is_file() else None


def _evaluation(workdir: Path) -> dict[str, Any] | None:
    """Return what a run found on its test images."""
    evaluations = _read(workdir, "evaluations.json")
    return evaluations[-1] if evaluations else _read(workdir, "soup.json")


def _by_class(confusion: np.ndarray) -> list[dict[str, Any]]:
    hits, truths, guesses = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "num_images": int(true),
            "recall": hit / true if true else None,
            "precision": hit / guess if guess else None,
        }
        for hit, true, guess in zip(hits.tolist(), truths.tolist(), guesses.tolist(), strict=True)
    ]


def _weights(found: Mapping[str, Any]) -> dict[str, str]:
    """Say what the run began with: the name that its config gives, but for folders of the machine that it ran on."""
    keys = ("description", "licence", "layout")
    known = found["facts"]["weights"] if found["facts"] else dict.fromkeys(keys, MISSING)
    name = found["config"]["model"]["name"]
    return {
        "name": f"a file or folder {Path(name.removeprefix('file:')).name}" if name.startswith("file:") else name,
        **{key: known[key] for key in keys},
    }


def hub_header(workdir: Path) -> str:
    """Return the YAML header that the Hugging Face hub reads, as far as the records go.

    Source:
        https://huggingface.co/docs/hub/model-cards, "Model card metadata".
    """
    found = gather(workdir)
    lines = ["library_name: transformers", "pipeline_tag: image-classification"]
    licence, name = found["weights"]["licence"], found["config"]["model"]["name"]
    # An identifier, as against a sentence.
    if re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)+|mit", licence):
        lines.append(f"license: {licence}")
    if name.startswith("hf:"):
        lines.append(f"base_model: {json.dumps(name.removeprefix('hf:'))}")
    lines.append("tags: [tljax, image-classification]")
    if found["record"] and found["facts"]:
        data, metrics = found["facts"]["data"]["name"], found["record"]["metrics"]
        title = f"{found['weights']['description']} on {data}"
        lines += [
            "model-index:",
            f"- name: {json.dumps(title)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}, split: test}}",
            "    metrics:",
            *(f"    - {{type: {key}, value: {value:.4f}}}" for key, value in sorted(metrics.items())
              if value is not None and np.isfinite(value)),
        ]  # fmt: skip
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _cell(value: Any) -> str:
    """Write text into a cell of a table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
