"""Where the batches of a run come from: images, or the stored activations of the frozen prefix."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tljax import plain
from tljax.data.augment import Augment
from tljax.data.image_cache import CacheRoom
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.data.share import WHOLE, Share
from tljax.features.prefix import build_prefix, ordered_prefix_batches, prefix_batches, prefix_spec
from tljax.features.store import FeatureStore
from tljax.finetune.costs import step_batch
from tljax.finetune.step import Batch
from tljax.tasks.execution import execution_of
from tljax.tasks.inputs import Inputs
from tljax.tasks.plan import Plan
from tljax.tasks.recipe import Prefix
from tljax.tasks.sections import call


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches for training and for evaluation.

    Args:
        inputs: data and pretrained net.
        batch_size: images a batch.
        augment: of training images; stored activations have been changed before.
        sampling: see `data.sampling`.
        start: the stage whose input the batches hold; 0 for images.
        store: the stored inputs of that stage; None for images.
        share: the rows of each batch that this process reads.
        num_workers: processes that load images; 0 for threads.
        room: where decoded images are kept; None keeps none.
    """

    inputs: Inputs
    batch_size: int
    augment: Augment
    sampling: str
    start: str | int
    store: FeatureStore | None
    share: Share
    num_workers: int
    room: CacheRoom | None

    def alone(self) -> "Feed":
        """Return the feed of a process that does something without the others, and reads whole batches."""
        return dataclasses.replace(self, share=WHOLE)

    def training(self, indices: np.ndarray, seed: int, start_step: int) -> Iterator[Batch]:
        """Endless shuffled batches with random views, from a step on."""
        source, preprocess = self.inputs.source, self.inputs.pretrained.preprocess
        if self.store is not None:
            return prefix_batches(
                self.store, indices, source.labels, self.batch_size, seed, start_step=start_step,
                views=self.store.ingredients["views"], sampling=self.sampling, targets=source.targets,
                share=self.share,
            )  # fmt: skip
        return training_batches(
            source, indices, preprocess, self.batch_size, seed, start_step=start_step, augment=self.augment,
            sampling=self.sampling, share=self.share, num_workers=self.num_workers, room=self.room,
        )  # fmt: skip

    def ordered(self, indices: np.ndarray) -> Iterator[Batch]:
        """Padded batches without augmentation, in order."""
        if self.store is not None:
            return ordered_prefix_batches(self.store, indices, self.batch_size, share=self.share)
        preprocess = self.inputs.pretrained.preprocess
        return ordered_batches(
            self.inputs.source, indices, preprocess, self.batch_size, share=self.share, num_workers=self.num_workers,
            room=self.room,
        )  # fmt: skip


def open_feed(plan: Plan) -> Feed:
    """Choose images or stored activations, and compute the latter where they are not there yet."""
    store = None if plan.bank is None else _open_prefix(plan)
    execution = execution_of(plan.config)
    return Feed(
        inputs=plan.inputs, batch_size=plan.recipe.batch_size, augment=plan.augment, sampling=plan.recipe.sampling,
        start=plan.start, store=store, share=Share(index=jax.process_index(), count=jax.process_count()),
        num_workers=execution.num_workers, room=cache_room(plan.config),
    )  # fmt: skip


def cache_room(config: Mapping[str, Any]) -> CacheRoom | None:
    """Return where a config lets decoded images be kept, if it does."""
    size = execution_of(config).image_cache_gb
    directory = Path(config["cache_dir"]) / "images"
    return CacheRoom(directory=directory, budget_bytes=int(size * 1e9)) if size else None


def batch_shapes(plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what the steps of a phase read of a batch, before there is any."""
    size, targets = plan.recipe.batch_size, plan.inputs.source.targets
    shapes = step_batch(plan.forward, size, plan.inputs.pretrained.preprocess.shape)
    if targets is not None:
        shapes["label"] = jax.ShapeDtypeStruct((size, *targets.shape[1:]), targets.dtype)
    if plan.bank is not None:
        dtype = call("prefix", plan.config, Prefix).dtype
        shapes["activation"] = jax.ShapeDtypeStruct(shapes["activation"].shape, dtype)
    return shapes


def open_once(plans: Sequence[Plan]) -> list[Callable[[], Feed]]:
    """Return for each plan what opens its feed when it is first called for."""
    return [functools.cache(functools.partial(open_feed, plan)) for plan in plans]


def _open_prefix(plan: Plan) -> FeatureStore:
    """Return the complete store of prefix activations."""
    folder, _, what, settings = locate_prefix(plan)
    return build_prefix(*what, folder, **settings, batch_size=call("prefix", plan.config, Prefix).batch_size)


class Location(NamedTuple):
    """Where a phase stores its prefix: a folder named by all that determines it, and the arguments of `prefix_spec`."""

    folder: Path
    spec: dict[str, Any]
    what: tuple[Any, Any, Any, Any, Any]
    settings: dict[str, Any]


def locate_prefix(plan: Plan) -> Location:
    """Say where a phase that has a bank stores its prefix, there or not."""
    assert plan.bank is not None
    pretrained, bank = plan.inputs.pretrained, plan.bank
    what = (pretrained.net, pretrained.params, pretrained.stats, plan.inputs.source, pretrained.preprocess)
    settings = {
        "boundary": plan.start, "views": bank.views, "augment": bank.augment, "seed": bank.seed,
        "dtype": call("prefix", plan.config, Prefix).dtype,
    }  # fmt: skip
    spec = prefix_spec(*what, **settings)
    return Location(Path(plan.config["cache_dir"]) / "prefix" / plain.fingerprint(spec)[:16], spec, what, settings)
