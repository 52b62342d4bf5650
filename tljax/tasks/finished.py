"""A model that is ready to be used: of a finished run, or published with a head of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import rundir
from tljax.calibration import SIGMOID, SOFTMAX
from tljax.tasks.calibrating import read_calibration
from tljax.tasks.restore import restore
from tljax.weights import Pretrained, load


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A net with a head, and how its scores become probabilities.

    Args:
        pretrained: the net, its params and what it wants done to images.
        class_names: of the head, in order.
        kind: "softmax" for classes that exclude each other, "sigmoid" for labels each on its own.
        temperature: that scores are divided by; 1 where it is not calibrated.
        calibration: what the run found, `calibrating.CALIBRATION`; None for published weights.
    """

    pretrained: Pretrained
    class_names: tuple[str, ...]
    kind: str
    temperature: float
    calibration: dict[str, Any] | None

    def probabilities(self, scores: jax.Array) -> jax.Array:
        """Turn scores [b k] into probabilities; traceable."""
        squash = jax.nn.sigmoid if self.kind == SIGMOID else jax.nn.softmax
        return squash(scores.astype(jnp.float32) / self.temperature)

    def describe_calibration(self) -> str:
        """Say in a line what the probabilities are worth."""
        found = self.calibration
        if found is None:
            return "not calibrated: published weights come without validation images of yours"
        if found["temperature"] is None:
            return f"not calibrated: {found['problem']}"
        test = found["test"]
        return (
            f"calibrated at temperature {found['temperature']:.3f}, from {found['val']['num_images']} validation "
            f"images; ECE on {test['num_images']} test images {test['before']['ece']:.4f} before, "
            f"{test['after']['ece']:.4f} after"
        )


def open_finished(source: str | Path) -> Finished:
    """Open the directory of a finished `tljax finetune` or `tljax soup`, or weights by a name of `tljax.load`.

    Raises:
        FileNotFoundError: there is no such run, or it is not finished.
        ValueError: the pretrained weights have changed since, there are no such weights, or they have no head.
    """
    if is_run(source):
        model, found = restore(source), read_calibration(Path(source))
        kind, temperature = found["kind"], found["temperature"]
    else:
        model, found, kind, temperature = load(str(source)), None, SOFTMAX, None
    if not model.net.num_classes:
        raise ValueError(f"{source} has no head, so it has no classes to predict; fine-tune it first")
    if model.preprocess.shape[2] not in (1, 3):
        raise ValueError(f"{source} takes images of {model.preprocess.shape[2]} channels, and files have 1 or 3")
    return Finished(
        pretrained=model,
        class_names=model.class_names or tuple(map(str, range(model.net.num_classes))),
        kind=kind,
        temperature=1.0 if temperature is None else temperature,
        calibration=found,
    )


def is_run(source: str | Path) -> bool:
    """Tell a run directory from weights: folders of transformers and timm have a file of the name of its config too."""
    return (Path(source) / rundir.ENV).is_file()
