"""What a model card says of a run that none of its other files does."""

from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.data.sources import Source
from tljax.data.splits import Split
from tljax.tasks.inputs import Inputs, has_labels

# In the run directory.
FACTS = "facts.json"


def note_facts(workdir: Path, inputs: Inputs, split: Split) -> None:
    """Write down what data and weights are called, under which licence, and how many images of each class there are."""
    source, pretrained = inputs.source, inputs.pretrained
    parts = {"train": split.train, "val": split.val, "test": split.test}
    rundir.write_json(
        workdir / FACTS,
        {
            "data": {"name": source.name, "licence": source.licence, "num_images": len(source)},
            "parts": {name: _count(source, part) for name, part in parts.items()},
            "weights": {
                "name": pretrained.name,
                "description": pretrained.description,
                "licence": pretrained.licence,
                "layout": pretrained.layout,
                "ignored": list(pretrained.report.ignored),
                "fresh": list(pretrained.report.fresh),
            },
        },
    )


def _count(source: Source, indices: np.ndarray) -> dict[str, Any]:
    if source.is_multi_label:
        counts = has_labels(source)[indices].sum(axis=0)
    else:
        counts = np.bincount(source.labels[indices], minlength=len(source.class_names))
    return {"num_images": len(indices), "by_class": counts.tolist()}
