"""How long steps wait for data: what tells a slow input from a slow model."""

import logging
import os
import time

from tljax import rundir
from tljax.data.prefetch import Ahead

# Above this share of the time, the input is worth a look.
ADVISED_SHARE = 0.1

log = logging.getLogger(__name__)


class WaitingMeter:
    """Adds up how long steps waited for their batches, evaluations and checkpoints aside.

    A class because it goes along with the loop. The first step compiles, and counts for nothing.

    Args:
        path: JSON lines, one a step: "step", "waited_s", and its "share" of the time that the step took; None writes
            none.
    """

    def __init__(self, path: str | os.PathLike | None):
        self._path = path
        self._num_steps = 0
        self._num_images, self._waited_s, self._total_s = 0, 0.0, 0.0

    def note(self, step: int, batches: Ahead, num_images: int) -> None:
        """Take note of a step, when it is under way and the one before has ended.

        Args:
            step: of the run.
            batches: that the step got its batch from.
            num_images: of that batch.
        """
        waited_s, taken_s = batches.waited_s, time.monotonic() - batches.asked_s
        if self._path is not None:
            rundir.append_metrics(self._path, {"step": step, "waited_s": waited_s, "share": waited_s / taken_s})
        self._num_steps += 1
        if self._num_steps > 1:
            self._num_images += num_images
            self._waited_s += waited_s
            self._total_s += taken_s

    @property
    def share(self) -> float:
        """Share of the time that was spent waiting."""
        return self._waited_s / self._total_s if self._total_s else 0.0

    def report(self) -> None:
        """Log what was found, and what to do about it."""
        if not self._total_s:
            return
        advice = ""
        if self.share > ADVISED_SHARE:
            advice = "; run `tljax bench data` with this config, which says what to change"
        log.info(
            "%.1f images/s in %d steps, %.1f %% of the time waiting for data%s",
            self._num_images / self._total_s, self._num_steps, 100 * self.share, advice,
        )  # fmt: skip
