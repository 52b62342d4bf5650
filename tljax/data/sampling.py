"""Which examples an epoch shows, in which order and under which views: of images and of stored features alike."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from tljax.data.splits import hashed_seed
from tljax.paths import did_you_mean

UNIFORM = "uniform"
CLASS_BALANCED = "class_balanced"
SAMPLINGS = (UNIFORM, CLASS_BALANCED)


def check_sampling(sampling: str) -> None:
    """Refuse a sampling that is not known.

    Raises:
        ValueError: it is not.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"no sampling {sampling!r}{did_you_mean(sampling, SAMPLINGS)}; known: {', '.join(SAMPLINGS)}")


def epoch_indices(
    indices: Integer[np.ndarray, " m"], labels: Integer[np.ndarray, " n"], seed: int, epoch: int, *, sampling: str
) -> Integer[np.ndarray, " m"]:
    """Draw the examples of an epoch, as many as there are indices.

    Args:
        indices: examples to train on, as positions in the source.
        labels: of all examples of the source.
        seed: the run's seed.
        epoch: counted from 0.
        sampling: "uniform" shows each example once; "class_balanced" shows each class that occurs equally often, to
            within one, and within a class no example again before all others have been shown.

    Raises:
        ValueError: an unknown sampling.

    Source:
        Kang et al. 2020, arXiv:1910.09217, section 3.1: class-balanced is eq. 1 with q = 0. There the class of every
        place is drawn on its own; here the classes are dealt out, so that no epoch leans to one by chance.
    """
    check_sampling(sampling)
    generator = np.random.default_rng(hashed_seed(seed, f"order of epoch {epoch}"))
    if sampling == UNIFORM:
        return generator.permutation(indices)
    members = [indices[labels[indices] == label] for label in np.unique(labels[indices])]
    # The classes that get one place more are drawn: the others would be short in every epoch.
    places, left_over = divmod(len(indices), len(members))
    gets_more = generator.permutation(len(members)) < left_over
    drawn = [_draw_members(each, places + int(more), generator) for each, more in zip(members, gets_more, strict=True)]
    return generator.permutation(np.concatenate(drawn))


def epoch_views(num_images: int, seed: int, epoch: int, *, views: int) -> Integer[np.ndarray, " m"]:
    """Draw which of its views each example of an epoch is shown under, in the order of `epoch_indices`.

    Args:
        num_images: examples of the epoch.
        seed: the run's seed.
        epoch: counted from 0.
        views: how many there are to draw from.
    """
    generator = np.random.default_rng(hashed_seed(seed, f"views of epoch {epoch}"))
    return generator.integers(views, size=num_images)


def _draw_members(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` members, each again only when all have been drawn."""
    rounds = -(-count // len(members))
    drawn = [generator.permutation(members) for _ in range(rounds)]
    return np.concatenate([members[:0], *drawn])[:count]


# Not compared by its arrays: the epochs that were drawn are remembered for each stream.
@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleStream:
    """The examples of all epochs one after the other, by place in the stream, each with its view.

    The arguments are those of `epoch_indices` and `epoch_views`.
    """

    indices: np.ndarray
    labels: np.ndarray
    seed: int
    sampling: str
    views: int

    def take(self, places: Integer[np.ndarray, " b"]) -> tuple[Integer[np.ndarray, " b"], Integer[np.ndarray, " b"]]:
        """Return the examples at places in the stream, and their views."""
        epochs, rest = np.divmod(places, len(self.indices))
        index, view = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            indices, views = _epoch_of(self, epoch)
            index[chosen], view[chosen] = indices[rest[chosen]], views[rest[chosen]]
        return index, view


# Batches hold the end of one epoch and the start of the next.
@functools.lru_cache(maxsize=4)
def _epoch_of(stream: ExampleStream, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    indices = epoch_indices(stream.indices, stream.labels, stream.seed, epoch, sampling=stream.sampling)
    return indices, epoch_views(len(indices), stream.seed, epoch, views=stream.views)
