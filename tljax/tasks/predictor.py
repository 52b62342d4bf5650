"""Predictions for any images, from a finished run or from published weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from tljax.calibration import SIGMOID
from tljax.data.unlabelled import Given, Unlabelled, unlabelled_batches, unpack
from tljax.devices import make_mesh, place
from tljax.finetune.devices import make_eval_step, put_inputs
from tljax.tasks.finished import Finished, open_finished

# From here on a label counts as predicted, as in `metrics.multi_label_metrics`.
THRESHOLD = 0.5


class Predicted(NamedTuple):
    """Predictions for some images: a name each, a row of probabilities each, and what is wrong with it, or None."""

    names: list[str]
    probabilities: np.ndarray
    problems: list[str | None]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for images, in their order.

    Args:
        names: paths, or "image 3" where there is none.
        probabilities: a row for each image, a column for each class; NaN for an image that could not be used.
        problems: {position: what is wrong} of those.
        class_names: of the columns.
        kind: "softmax" or "sigmoid", see `Finished`.
    """

    names: list[str]
    probabilities: Float[np.ndarray, "n k"]
    problems: dict[int, str]
    class_names: tuple[str, ...]
    kind: str

    @property
    def labels(self) -> list[Any]:
        """The predicted class of each image, or of "sigmoid" the list of its labels; None where there is a problem."""
        return [None if np.isnan(row[0]) else label_of(row, self.class_names, self.kind) for row in self.probabilities]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image with their probabilities; none where there is a problem."""
        return [[] if np.isnan(row[0]) else top_of(row, self.class_names, count) for row in self.probabilities]


def label_of(row: np.ndarray, class_names: Sequence[str], kind: str) -> Any:
    """Return the class that probabilities say, or of "sigmoid" the list of labels, which may be empty."""
    if kind == SIGMOID:
        return [class_names[index] for index in np.flatnonzero(row >= THRESHOLD).tolist()]
    return class_names[int(row.argmax())]


def top_of(row: np.ndarray, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Return the most probable classes with their probabilities; of equal ones the first comes first."""
    order: list[int] = np.argsort(-row, kind="stable")[:count].tolist()
    return [(class_names[index], float(row[index])) for index in order]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model with all that it takes to get from images to probabilities.

    A class because the compiled function and the params on the devices outlive a call.

        predictor = tljax.Predictor.open("runs/mine")
        found = predictor(["a.jpg", picture, array])
        found.probabilities, found.labels, found.top(3), found.problems

    Args:
        model: from `open_finished`.
        batch_size: images that are computed together at most; rounded up to a multiple of the devices.
        num_workers: processes that decode; 0 decodes in threads.
    """

    model: Finished
    batch_size: int = 32
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, wanted at least 1")

    @classmethod
    def open(cls, source: str | Path, **settings: int) -> "Predictor":
        """Open a finished run, or weights by name; raises as `open_finished`.

        Args:
            source: see `open_finished`.
            settings: `batch_size` and `num_workers`.
        """
        return cls(model=open_finished(source), **settings)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that probabilities are of."""
        return self.model.class_names

    def __call__(self, images: Sequence[Any]) -> Predictions:
        """Predict.

        Args:
            images: paths, bytes of image files, pictures of Pillow's, or arrays uint8 [h w 3] or [h w], of any sizes.

        Raises:
            TypeError: one of them is something else.
        """
        names, problems = [], {}
        rows = [np.zeros((0, len(self.class_names)), np.float32)]
        for found in self.stream(Given(items=images), len(images)):
            problems |= {len(names) + index: text for index, text in enumerate(found.problems) if text is not None}
            names += found.names
            rows.append(found.probabilities)
        return Predictions(
            names=names, probabilities=np.concatenate(rows), problems=problems, class_names=self.class_names,
            kind=self.model.kind,
        )  # fmt: skip

    def stream(self, images: Unlabelled, count: int) -> Iterator[Predicted]:
        """Yield predictions batch by batch; holds a few batches at a time.

        Args:
            images: to predict.
            count: their number.
        """
        if not count:
            return
        preprocess = self.model.pretrained.preprocess
        params, stats = self._arrays
        for batch in unlabelled_batches(images, preprocess, self._rows(count), self.num_workers):
            pixels, problems = unpack(batch["image"], preprocess.shape)
            found = np.array(self._step(params, stats, put_inputs({"image": pixels}, self._mesh)))
            found[[problem is not None for problem in problems]] = np.nan
            mask = batch["mask"]
            yield Predicted(
                names=[images.name(place) for place in batch["place"][mask].tolist()],
                probabilities=found[mask],
                problems=problems[: int(mask.sum())],
            )

    def _rows(self, count: int) -> int:
        """Return the rows of a batch: a power of two for each device, so that few sizes are ever compiled."""
        devices = jax.local_device_count()
        least = -(-min(count, self.batch_size) // devices)
        most = -(-self.batch_size // devices)
        return devices * min(2 ** (least - 1).bit_length(), most)

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return make_mesh(jax.local_devices())

    @cached_property
    def _arrays(self) -> Any:
        return place((self.model.pretrained.params, self.model.pretrained.stats), self._mesh)

    @cached_property
    def _step(self) -> Callable[..., jax.Array]:
        pretrained = self.model.pretrained
        return make_eval_step(pretrained.net, pretrained.preprocess, self._mesh, probabilities=self.model.probabilities)
