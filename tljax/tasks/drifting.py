"""How far a run took each stage from the pretrained net, in numbers and as a picture."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax import rundir
from tljax.ablation.drift_chart import drift_chart
from tljax.ablation.picture import write_picture
from tljax.data.share import WHOLE
from tljax.finetune.drift import drift, stage_cka
from tljax.finetune.step import model_inputs
from tljax.models.net import HEAD
from tljax.paths import stage_of
from tljax.tasks.feed import Feed
from tljax.tasks.plan import Plan
from tljax.tasks.training import Result

DRIFT, PICTURE = "drift.json", "drift.svg"


def measure_drift(plan: Plan, result: Result, feed: Feed, indices: np.ndarray, workdir: Path) -> dict[str, float]:
    """Write the drift of each stage before the head, and return that of the stages that moved.

    A number that does not exist is null in the file and is not returned: the relative L2 of a stage that was all
    zeros, and the CKA of features that are the same for all images, or with fewer than two images.

    Args:
        plan: of the phase that the result is of.
        result: what the run ended with.
        feed: of the phase.
        indices: of images that were not trained on; their features are compared by CKA, if there are any. Those of
            the stages that come before the first that runs are what they were.
        workdir: of the run.

    Returns:
        "drift/STAGE/relative_l2", "drift/STAGE/cosine" and "drift/STAGE/cka" of each stage with a param that moved.
    """
    pretrained, net = plan.inputs.pretrained, plan.forward.net
    after = result.params(plan)
    head = [path for path in net.shapes if stage_of(path) == HEAD]
    rows = drift(pretrained.params, after, net.stages, leave_out=head)
    similarities = _similarities(plan, (after, result.stats), feed, indices) if len(indices) > 1 else {}
    for row in rows:
        row["cka"] = similarities.get(row["stage"])
    chart = drift_chart(
        f"drift from the pretrained net; CKA on {len(indices)} images that were not trained on",
        rows,
        similarities,
        net.stages,
    )
    write_picture(workdir / PICTURE, chart)
    # JSON has no NaN and no infinity.
    known: list[dict[str, Any]] = [
        {name: None if _is_undefined(value) else value for name, value in row.items()} for row in rows
    ]
    rundir.write_json(workdir / DRIFT, {"num_images": len(indices), "stages": known})
    return {
        f"drift/{row['stage']}/{name}": float(row[name])
        for row in known
        for name in ("relative_l2", "cosine", "cka")
        if row["relative_l2"] != 0 and row[name] is not None
    }


def _is_undefined(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _similarities(plan: Plan, after: tuple[Any, Any], feed: Feed, indices: np.ndarray) -> dict[str, float]:
    pretrained, net = plan.inputs.pretrained, plan.forward.net
    same = dict.fromkeys(net.stages[: net.depth(plan.start)], 1.0)
    if net.stages[net.depth(plan.start)] == HEAD:
        return same
    before = (pretrained.params, pretrained.stats)
    return {**same, **stage_cka(net, before, after, _held_out(plan, feed, indices), start=plan.start)}


def _held_out(plan: Plan, feed: Feed, indices: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Yield what the first stage that runs reads, and which rows of it count."""
    preprocess, net = plan.inputs.pretrained.preprocess, plan.forward.net
    # One process does this alone.
    for batch in dataclasses.replace(feed, share=WHOLE).ordered(indices):
        arrays = {key: jnp.asarray(value) for key, value in batch.items() if key in ("image", "activation")}
        yield model_inputs(arrays, net, preprocess, plan.start), batch["mask"]
