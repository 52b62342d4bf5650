"""Checkpoints of a training run: the only module that knows Orbax.

Source: the v1 interface of orbax-checkpoint 0.12, which still changes between minor releases.
"""

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
from orbax.checkpoint import v1 as ocp

from tljax import plain, processes

# Both are written before Orbax renames a step's folder to its final name.
COMPLETE_FILES = ("_CHECKPOINT_METADATA", "state/_METADATA")

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in a folder, which all belong to one config.

    A class, and a context manager, because saves go on in the background: leaving waits for them. Several processes
    write a checkpoint together, into one folder that all of them see, and must all call all methods.

    Args:
        directory: made if it is not there.
        config: plain values that determine the run; kept in each checkpoint.
        keep_latest: number of checkpoints kept.
        keep_best: name of a metric; the checkpoint with the largest is kept too.
        timeout_s: of a save by several processes, which wait for each other so long where one of them cannot write;
            None for what Orbax takes.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: Mapping[str, Any],
        *,
        keep_latest: int = 2,
        keep_best: str | None = None,
        timeout_s: int | None = None,
    ):
        self.directory = Path(directory).absolute()
        self.config = plain.as_read(config)
        _set_incomplete_aside(self.directory)
        self.keep_best = keep_best
        policies: Any = ocp.training.preservation_policies
        keep = policies.LatestN(keep_latest)
        if keep_best is not None:
            # Of equal ones the latest; a checkpoint without metrics is there for resuming only.
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics[keep_best], n=1, keep_checkpoints_without_metrics=False
            )
            keep = policies.AnyPreservationPolicy([keep, best])
        settings: dict[str, Any] = {} if timeout_s is None else {"timeout_secs": timeout_s}
        context = ocp.Context(async_options=ocp.options.AsyncOptions(**settings))
        self._checkpointer = ocp.training.Checkpointer(str(self.directory), context=context, preservation_policy=keep)
        self._saving: Any = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with self._explained():
                self._checkpointer.close()
        except OSError as problem:
            # What went wrong first goes on its way.
            if kind is None:
                raise
            log.error("%s", problem)

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, as this process knows it; None when there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the largest `keep_best`; None when there is none."""
        if self.keep_best is None:
            return None
        metrics: dict[int, Any] = {info.step: info.metrics for info in self._checkpointer.checkpoints}
        known = [(found[self.keep_best], step) for step, found in metrics.items() if found]
        return max(known)[1] if known else None

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Save in the background; waits first for a save that is still going on.

        Args:
            step: number of steps taken.
            state: a tree of arrays.
            metrics: what was evaluated at this step, if anything.

        Raises:
            FileExistsError: there is a checkpoint of this step.
            OSError: this save, or the one before, cannot be written. The end of the context says it of the last.
        """
        meta = {"step": step, "config": self.config}
        with self._explained():
            _check_room(self.directory, state)
            self._saving = self._checkpointer.save_checkpointables_async(
                step,
                {"state": state},
                force=True,
                metrics=None if metrics is None else dict(metrics),
                custom_metadata=meta,
            )

    def wait(self) -> None:
        """Wait until the last save has ended; raises as `save`."""
        with self._explained():
            if self._saving is not None:
                self._saving.result()

    def restore(self, state: Any, step: int | None = None) -> Any:
        """Return the state of a checkpoint, or `state` itself when there is none.

        Args:
            state: a tree of arrays, or of `ShapeDtypeStruct` with shardings, that says what to restore and where.
            step: of the checkpoint; None for the latest.

        Raises:
            ValueError: the checkpoint was made with another config; the message lists the differences.
        """
        step = self.latest_step if step is None else step
        if step is None:
            return state
        self._check_config(step)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        log.info("restoring step %d from %s", step, self.directory)
        return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what Orbax says of a full disk, a ValueError as often as not, into an error that says what is left."""
        try:
            yield
        except FileExistsError:
            raise
        except (OSError, ValueError, TimeoutError) as error:
            whole = last_saved(self.directory)
            left = f"the checkpoint of step {whole} is whole" if whole else "no checkpoint is whole yet"
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(
                f"cannot save a checkpoint in {self.directory}: {reason}; {left}; make room and run again"
            ) from error

    def _check_config(self, step: int) -> None:
        meta = cast(dict[str, Any], self._checkpointer.checkpointables_metadata(step).custom_metadata)
        problems = plain.differences(meta["config"], self.config)
        if problems:
            raise ValueError(
                f"the checkpoint of step {step} in {self.directory} was made with another config; "
                "use another workdir, or the config it was made with:\n  " + "\n  ".join(problems)
            )


def last_saved(directory: Path) -> int:
    """Return the step of the latest whole checkpoint, 0 where there is none, by the files alone."""
    return max((int(folder.name) for folder in directory.glob("*") if _is_whole(folder)), default=0)


def _set_incomplete_aside(directory: Path) -> None:
    """Rename step folders without content, such as a crash can leave behind.

    Orbax takes any folder with a number for a name as a checkpoint: it would be restored as the latest,
    and count towards those to keep, so that the good ones would go.
    """
    if processes.is_first() and directory.exists():
        for folder in sorted(directory.iterdir()):
            if not folder.name.isdigit() or _is_whole(folder):
                continue
            aside = folder.with_name(f"incomplete_{folder.name}_{time.time_ns()}")
            folder.rename(aside)
            log.warning("%s is not a whole checkpoint; ignored, and renamed to %s", folder, aside.name)
    processes.wait_for_all("incomplete checkpoints are set aside")


def _check_room(directory: Path, state: Any) -> None:
    """Refuse to begin a checkpoint that the disk has no room for, which several processes would find out too late.

    Raises:
        OSError: there is not enough.
    """
    wanted, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(directory).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC, f"the disk has {free / 1e9:.3g} GB left, and a checkpoint takes {wanted / 1e9:.3g} GB"
        )


def _is_whole(folder: Path) -> bool:
    return folder.name.isdigit() and all((folder / name).exists() for name in COMPLETE_FILES)
