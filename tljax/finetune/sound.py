"""Whether a step has left a run from which it can go on."""

import math
from collections.abc import Mapping

from tljax.finetune.checkpoint import Checkpoints

# What to do about a step that is not sound.
ADVICE = "Lower the learning rate, clip the gradient, or look for a label out of range in the batch of this step"


def problem_of(values: Mapping[str, float], max_loss: float) -> str | None:
    """Say which metrics of a step are not those of a run that can go on; None where all are."""
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not broken and values["loss"] > max_loss:
        broken = {"loss": values["loss"]}
    return ", ".join(f"{name} is {value}" for name, value in broken.items()) or None


def check_sound(step: int, values: Mapping[str, float], max_loss: float, checkpoints: Checkpoints) -> None:
    """End a run that cannot go on.

    Raises:
        FloatingPointError: a metric of the step is not finite, or its loss is above `max_loss`.
    """
    problem = problem_of(values, max_loss)
    if problem is None:
        return
    kept = checkpoints.latest_step
    good = f"the checkpoint of step {kept} in {checkpoints.directory} is good" if kept else "no checkpoint was made yet"
    raise FloatingPointError(f"step {step}: {problem}; {good}. {ADVICE}")
