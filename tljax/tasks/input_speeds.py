"""How many images a second each part of the input gives on this machine, and all parts together."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tljax.data.augment import Augment, augment_image, augment_prepared
from tljax.data.decode import decode_image
from tljax.data.image_cache import CacheRoom, Images
from tljax.data.loading import BATCHES_AHEAD, Row
from tljax.data.pipeline import before_changes, load_changed, training_batches
from tljax.data.prefetch import Ahead
from tljax.data.sample import Sample
from tljax.data.worker import keep_freed_memory
from tljax.data.workers import PRELOADED
from tljax.preprocess import Preprocess

# Of a part that runs on images in memory.
IMAGES_IN_MEMORY = 64
_START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done to each image of a run.

    Args:
        preprocess: of the model.
        augment: of training images.
        batch_size: images a step, of this process.
    """

    preprocess: Preprocess
    augment: Augment
    batch_size: int


def rate_of(action: Callable[[Any], object], items: Sequence[Any], seconds: float) -> float:
    """Return how often a second an action can be done, going round and round the items in this thread."""
    action(items[0])
    started = time.perf_counter()
    for count, item in enumerate(itertools.cycle(items), 1):
        action(item)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return count / elapsed
    raise AssertionError("a cycle has no end")


def part_rates(
    sample: Sample, work: Work, put: Callable[[dict[str, np.ndarray]], object], seconds: float
) -> dict[str, float]:
    """Return images a second of each part alone, in one thread: read, decode, preprocess, augment, batch, transfer.

    Args:
        sample: of the data.
        work: done to each image.
        put: brings a batch to the devices, and waits until it is there.
        seconds: for each part.
    """
    indices = list(range(len(sample)))
    rates = {"read": rate_of(sample.__getitem__, indices, seconds)}
    chosen = indices[:IMAGES_IN_MEMORY]
    files = [sample[index]["image"] for index in chosen]
    rates["decode"] = rate_of(lambda data: decode_image(data, ""), files, seconds)
    images = [decode_image(data, "") for data in files]
    rates["preprocess"] = rate_of(work.preprocess, images, seconds)
    pixels = [work.preprocess(image) for image in images]
    generator = np.random.default_rng(0)
    view = work.augment.views - 1
    if work.augment.needs_decoded:
        change = partial(
            augment_image, generator=generator, augment=work.augment, preprocess=work.preprocess, view=view
        )
    else:
        change = partial(augment_prepared, generator=generator, augment=work.augment, view=view)
    rates["augment"] = rate_of(change, images if work.augment.needs_decoded else pixels, seconds)
    batch = np.zeros((work.batch_size, *work.preprocess.shape), np.uint8)
    places = np.arange(work.batch_size) % len(pixels)

    def gather(_: object) -> None:
        for row, place in enumerate(places):
            batch[row] = pixels[place]

    rates["batch"] = work.batch_size * rate_of(gather, [None], seconds)
    whole = {"image": batch, "label": np.zeros(work.batch_size, np.int32)}
    rates["transfer"] = work.batch_size * rate_of(put, [whole], seconds)
    return rates


def decode_only(index: int, sample: Sample) -> None:
    """Read and decode one image."""
    example = sample[index]
    decode_image(example["image"], example["name"])


def load_only(index: int, sample: Sample, work: Work) -> None:
    """Do to one image all that training does, and leave it there."""
    images = Images(source=sample, preprocess=before_changes(work.augment, work.preprocess), cache=None)
    row = Row(index, index, work.augment.views - 1)
    load_changed(row, images=images, preprocess=work.preprocess, augment=work.augment, seed=0)


def limit_rate(action: Callable[[int], None], num_images: int, num_processes: int, seconds: float) -> float:
    """Return how often a second so many processes can do an action, each for itself: what no pipeline can exceed.

    Args:
        action: image -> done; picklable.
        num_images: of which each process takes its part.
        num_processes: at least 1.
        seconds: to measure.

    Raises:
        ChildProcessError: a process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    barrier, receivers = context.Barrier(num_processes), []
    for number in range(num_processes):
        receiver, sender = context.Pipe(duplex=False)
        indices = range(number, max(num_images, number + 1), num_processes)
        arguments = (action, [index % num_images for index in indices], seconds, barrier, sender)
        context.Process(target=_measure, args=arguments, daemon=True).start()
        sender.close()
        receivers.append(receiver)
    try:
        return sum(receiver.recv() for receiver in receivers)
    except EOFError as error:
        raise ChildProcessError("a process that measured the decoding died; its error is above") from error


def _measure(
    action: Callable[[int], None], indices: list[int], seconds: float, barrier: Any, sender: Connection
) -> None:
    # As workers do: the limit is not to be beaten by that alone.
    keep_freed_memory()
    barrier.wait(_START_S)
    sender.send(rate_of(action, indices, seconds))


def pipeline_rate(
    sample: Sample,
    work: Work,
    put: Callable[[dict[str, np.ndarray]], object],
    seconds: float,
    *,
    num_workers: int,
    room: CacheRoom | None = None,
    is_one_epoch: bool = False,
) -> float:
    """Return images a second that arrive on the devices, when nobody else uses them.

    Args:
        sample: of the data.
        work: done to each image.
        put: as for `part_rates`.
        seconds: to measure.
        num_workers: of `training_batches`.
        room: of `training_batches`.
        is_one_epoch: measure the first pass over the sample, however long it takes; for a cache that is empty.
    """
    stream = training_batches(
        sample, np.arange(len(sample)), work.preprocess, work.batch_size, 0, augment=work.augment,
        num_workers=num_workers, room=room,
    )  # fmt: skip
    with Ahead(stream, put) as ahead:
        # What the start of the workers takes is no part of it, nor what they load meanwhile.
        for _ in range(1 if is_one_epoch else BATCHES_AHEAD + 1):
            next(ahead)
        started, count = time.perf_counter(), 0
        for _ in ahead:
            count += work.batch_size
            elapsed = time.perf_counter() - started
            is_done = count + 2 * work.batch_size > len(sample) if is_one_epoch else elapsed >= seconds
            if is_done:
                return count / elapsed
    raise AssertionError("the stream has no end")
