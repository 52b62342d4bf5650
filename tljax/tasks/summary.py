"""Records of finished runs to the data of the report."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from tljax import rundir
from tljax.data.decode import decode_image
from tljax.data.splits import load_split
from tljax.tasks import extract, finetune, probe
from tljax.tasks.inputs import Inputs
from tljax.tasks.recipe import phase_configs

_EXAMPLES = 16
# Pixels: twice the width in the page, for fine screens.
_THUMBNAIL_SIDE = 224


def summarise(
    config: Mapping[str, Any],
    title: str,
    references: Sequence[Mapping[str, Any]],
    workdir: Path,
    inputs: Inputs,
    runs: Mapping[str, Sequence[Path]],
) -> dict[str, Any]:
    """Collect what `write_report` shows.

    Args:
        config: of the comparison.
        title: of the report.
        references: independent results; those on other data are left out.
        workdir: of the comparison, with the run directory of the extraction in it.
        inputs: data and pretrained net.
        runs: run directories of each task.
    """
    evaluations = [record for task in (probe.NAME, finetune.NAME) for path in runs[task] for record in _records(path)]
    tuned = runs[finetune.NAME]
    return {
        "title": title,
        "subtitle": f"{inputs.pretrained.description}, at {inputs.pretrained.preprocess.size} px",
        "starts": rundir.starts(workdir),
        "model": _model(inputs, rundir.read_json(runs[extract.NAME][0] / "extract.json")),
        "data": _data(config, inputs, runs[probe.NAME]),
        "evaluations": evaluations,
        "references": [reference for reference in references if reference["data"] == inputs.source.name],
        "curves": [_curve(path) for path in tuned],
        "examples": _examples(inputs, tuned[0]) if tuned else {"wrong": [], "right": [], "caption": ""},
        "partition": _partition(tuned[0]) if tuned else [],
        "timing": _timing(workdir, runs),
        "notes": _notes(config, tuned),
    }


def _partition(path: Path) -> list[dict[str, Any]]:
    """Return what the last phase of a run trains."""
    rows = rundir.read_json(path / finetune.PARTITION)
    return [row for row in rows if row["phase"] == rows[-1]["phase"]]


def _split_of(path: Path) -> dict[str, Any]:
    split = rundir.read_json(path / "config.json")["config"]["split"]
    return {"split": split["kind"], "repeat": split["repeat"]}


def _records(path: Path) -> list[dict[str, Any]]:
    return [{**record, **_split_of(path)} for record in rundir.read_json(path / "evaluations.json")]


def _model(inputs: Inputs, extracted: Mapping[str, Any]) -> dict[str, Any]:
    pretrained = inputs.pretrained
    return {
        "name": pretrained.name,
        "description": pretrained.description,
        "licence": pretrained.licence,
        "num_params": sum(value.size for value in pretrained.params.values()),
        "image_size": pretrained.preprocess.size,
        "stages": list(pretrained.net.stages),
        "hash_before": extracted["hash_before"],
        "hash_after": extracted["hash_after"],
    }


def _data(config: Mapping[str, Any], inputs: Inputs, paths: Sequence[Path]) -> dict[str, Any]:
    source = inputs.source
    counts = np.bincount(source.labels, minlength=inputs.num_classes)
    splits: dict[str, dict[str, Any]] = {}
    for path in paths:
        kind = _split_of(path)["split"]
        split = load_split(path / "split.npz", source)
        row = splits.setdefault(kind, {"kind": kind, "repeats": 0, "description": _describe_split(config, kind)})
        row["repeats"] += 1
        # Of the first repeat; whole groups differ a little in size.
        row.setdefault("train", len(split.train))
        row.setdefault("val", len(split.val))
        row.setdefault("test", len(split.test))
    return {
        "name": source.name,
        "num_images": len(source),
        "class_names": list(source.class_names),
        "class_counts": counts.tolist(),
        "licence": source.licence,
        "splits": list(splits.values()),
    }


def _describe_split(config: Mapping[str, Any], kind: str) -> str:
    split = config["split"]
    if kind == "stratified":
        return f"At random, the same proportions of {' and '.join(split.get('strata', ('label',)))} in every part"
    return f"Whole groups of {split['groups']!r}: none is in two parts"


def _curve(path: Path) -> dict[str, Any]:
    records = rundir.read_metrics(path / rundir.METRICS)
    trained = [record for record in records if "loss" in record]
    validated = [record for record in records if "val_accuracy" in record]
    return {
        **_split_of(path),
        "step": [record["step"] for record in trained],
        "train_loss": [record["loss"] for record in trained],
        "learning_rate": [record["learning_rate"] for record in trained],
        "val_step": [record["step"] for record in validated],
        "val_accuracy": [record["val_accuracy"] for record in validated],
    }


def _examples(inputs: Inputs, path: Path) -> dict[str, Any]:
    """Show the surest mistakes, and right answers at even distances of sureness."""
    with np.load(path / "predictions.npz") as file:
        indices, probabilities = file["index"], file["probabilities"]
    labels = inputs.source.labels[indices]
    predicted = probabilities.argmax(axis=1)
    sureness = probabilities.max(axis=1)
    order = np.argsort(-sureness, kind="stable")
    wrong = order[predicted[order] != labels[order]]
    right = order[predicted[order] == labels[order]]
    spread = np.unique(np.linspace(0, len(right) - 1, _EXAMPLES).astype(int)) if len(right) else []
    where = _split_of(path)

    def show(row: int) -> dict[str, Any]:
        example = inputs.source[int(indices[row])]
        return {
            "png": base64.b64encode(_thumbnail(example["image"], example["name"])).decode(),
            "name": example["name"],
            "truth": inputs.source.class_names[labels[row]],
            "predicted": inputs.source.class_names[predicted[row]],
            "probability": float(sureness[row]),
        }

    return {
        "wrong": [show(int(row)) for row in wrong[:_EXAMPLES]],
        "right": [show(int(row)) for row in right[spread]],
        "caption": f"Test images of the {where['split']} split, repeat {where['repeat']}, by the fine-tuned net: "
        f"the {min(_EXAMPLES, len(wrong))} surest of {len(wrong)} mistakes, and right answers from sure to unsure.",
    }


def _thumbnail(data: bytes, name: str) -> bytes:
    """Encode an image file as a small PNG, which every browser shows."""
    image = Image.fromarray(decode_image(data, name))
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _detail(paths: Sequence[Path], results: Sequence[Mapping[str, float]]) -> str:
    """Say what the seconds of some runs are, and are not."""
    notes = [f"{len(paths)} run{'s' * (len(paths) != 1)}"]
    resumed = sum(len(rundir.starts(path)) > 1 for path in paths)
    if resumed:
        notes.append(f"{resumed} of them stopped and taken up again, without the time before")
    # The first run of some computes what the others reuse.
    reused = results[0].get("share_reused", 0)
    if reused:
        notes.append(f"{reused:.0%} of the stored activations were there before")
    return "; ".join(notes)


def _timing(workdir: Path, runs: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    parts = {
        "features of all images, one pass": runs[extract.NAME],
        "probes on stored features": runs[probe.NAME],
        "fine-tuning, frozen prefix included": runs[finetune.NAME],
    }
    rows = []
    for name, paths in parts.items():
        results = [rundir.read_json(path / rundir.DONE) for path in paths]
        if results:
            seconds = sum(result["seconds"] for result in results)
            rows.append({"name": name, "seconds": seconds, "detail": _detail(paths, results)})
    return rows


def _notes(config: Mapping[str, Any], tuned: Sequence[Path]) -> list[str]:
    return [
        *_note_on_fit(config, tuned),
        f"What the probes leave open (strength, neighbours, weight decay, steps) was chosen {_choice(config)}, and the "
        "fine-tuning recipe is fixed in the config; the test part only measures.",
        "Confidence-weighted accuracy weighs an image by how sure its label is.",
        f"Config seed {config['seed']}; a run is a function of its config.",
    ]


def _choice(config: Mapping[str, Any]) -> str:
    """Say what probes were chosen on and then fitted on."""
    probes = config["probe"]
    parts = "the training and the validation part" if probes["refit_on_val"] else "the training part"
    if probes["num_folds"]:
        return f"by {probes['num_folds']} folds of {parts}"
    return "on the validation part" + (f" before the fit on {parts}" if probes["refit_on_val"] else "")


def _note_on_fit(config: Mapping[str, Any], tuned: Sequence[Path]) -> list[str]:
    """Say whether fine-tuning is short of images or short of training: where to look for what it lacks."""
    trained, validated = [], []
    phases = phase_configs(config)
    last, epochs = len(phases) - 1, phases[-1]["finetune"]["epochs"]
    for path in tuned:
        records = rundir.read_metrics(path / rundir.METRICS)
        hits = [record["accuracy"] for record in records if "loss" in record and record["phase"] == last]
        trained += hits[-math.ceil(len(hits) / epochs) :]
        validated += [record["val_accuracy"] for record in records if "val_accuracy" in record][-1:]
    if not (trained and validated):
        return []
    on_training, on_validation = fmean(trained), fmean(validated)
    if 1 - on_training < on_training - on_validation:
        cause = "more is lost on new images than on those trained on, so more images or augmentation come before length"
    else:
        cause = "little of the loss is overfitting, so resolution, more trained stages or more epochs have room to help"
    return [
        f"In its last epoch fine-tuning was right on {on_training:.1%} of the training images, as augmented, and at "
        f"its end on {on_validation:.1%} of the validation images: {cause}."
    ]
