"""Where the batches of a run come from: images, or the stored activations of the frozen prefix."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tljax import plain
from tljax.data.augment import Augment
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.features.prefix import build_prefix, ordered_prefix_batches, prefix_batches, prefix_spec
from tljax.features.store import FeatureStore
from tljax.finetune.step import Batch
from tljax.tasks.inputs import Inputs
from tljax.tasks.plan import Plan
from tljax.tasks.sections import call


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches for training and for evaluation.

    Args:
        inputs: data and pretrained net.
        batch_size: images a batch.
        augment: of training images; of stored activations, how many views to draw from.
        sampling: see `data.sampling`.
        start: the stage whose input the batches hold; 0 for images.
        store: the stored inputs of that stage; None for images.
    """

    inputs: Inputs
    batch_size: int
    augment: Augment
    sampling: str
    start: str | int
    store: FeatureStore | None

    def training(self, indices: np.ndarray, seed: int, start_step: int) -> Iterator[Batch]:
        """Endless shuffled batches with random views, from a step on."""
        source, preprocess = self.inputs.source, self.inputs.pretrained.preprocess
        if self.store is not None:
            return prefix_batches(
                self.store, indices, source.labels, self.batch_size, seed, start_step=start_step,
                views=self.augment.views, sampling=self.sampling, targets=source.targets,
            )  # fmt: skip
        return training_batches(
            source, indices, preprocess, self.batch_size, seed, start_step=start_step, augment=self.augment,
            sampling=self.sampling,
        )  # fmt: skip

    def ordered(self, indices: np.ndarray) -> Iterator[Batch]:
        """Padded batches without augmentation, in order."""
        if self.store is not None:
            return ordered_prefix_batches(self.store, indices, self.batch_size)
        return ordered_batches(self.inputs.source, indices, self.inputs.pretrained.preprocess, self.batch_size)


def open_feed(plan: Plan) -> Feed:
    """Choose images or stored activations, and compute the latter where they are not there yet."""
    inputs, recipe = plan.inputs, plan.recipe
    store = None
    if recipe.use_prefix_cache:
        root, boundary = Path(plan.config["cache_dir"]) / "prefix", plan.start
        store = call("prefix", plan.config, cached_prefix, inputs, root, boundary=boundary, views=plan.augment.views)
    return Feed(
        inputs=inputs, batch_size=recipe.batch_size, augment=plan.augment, sampling=recipe.sampling, start=plan.start,
        store=store,
    )  # fmt: skip


def open_once(plans: Sequence[Plan]) -> list[Callable[[], Feed]]:
    """Return for each plan what opens its feed when it is first called for."""
    return [functools.cache(functools.partial(open_feed, plan)) for plan in plans]


def cached_prefix(
    inputs: Inputs, root: Path, *, boundary: str | int, views: int, dtype: str, batch_size: int
) -> FeatureStore:
    """Return the complete store of prefix activations, in a folder of `root` named by all that determines them.

    The keywords are those of `features.prefix.build_prefix`.
    """
    pretrained = inputs.pretrained
    what = (pretrained.net, pretrained.params, pretrained.stats, inputs.source, pretrained.preprocess)
    spec = prefix_spec(*what, boundary=boundary, views=views, dtype=dtype)
    folder = root / plain.fingerprint(spec)[:16]
    return build_prefix(*what, folder, boundary=boundary, views=views, dtype=dtype, batch_size=batch_size)
