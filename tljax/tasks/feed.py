"""Where the batches of a run come from: images, or the stored activations of the frozen prefix."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax import plain
from tljax.data.pipeline import ordered_batches, training_batches
from tljax.features.prefix import build_prefix, ordered_prefix_batches, prefix_batches, prefix_spec
from tljax.features.store import FeatureStore
from tljax.finetune.step import Batch
from tljax.tasks.inputs import Inputs
from tljax.tasks.sections import call


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches for training and for evaluation.

    Args:
        inputs: data and pretrained net.
        batch_size: images a batch.
        views: augmented views an image; see `training_batches`.
        start: the stage whose input the batches hold; 0 for images.
        store: the stored inputs of that stage; None for images.
    """

    inputs: Inputs
    batch_size: int
    views: int
    start: str | int
    store: FeatureStore | None

    def training(self, indices: np.ndarray, seed: int, start_step: int) -> Iterator[Batch]:
        """Endless shuffled batches with random views, from a step on."""
        source, random = self.inputs.source, {"start_step": start_step, "views": self.views}
        if self.store is not None:
            return prefix_batches(self.store, indices, source.labels, self.batch_size, seed, **random)
        return training_batches(source, indices, self.inputs.pretrained.preprocess, self.batch_size, seed, **random)

    def ordered(self, indices: np.ndarray) -> Iterator[Batch]:
        """Padded batches without augmentation, in order."""
        if self.store is not None:
            return ordered_prefix_batches(self.store, indices, self.batch_size)
        return ordered_batches(self.inputs.source, indices, self.inputs.pretrained.preprocess, self.batch_size)


def open_feed(
    config: Mapping[str, Any],
    inputs: Inputs,
    *,
    train_from: str,
    batch_size: int,
    views: int,
    use_prefix_cache: bool,
) -> Feed:
    """Choose images or stored activations, and compute the latter where they are not there yet.

    Raises:
        ValueError: a prefix is wanted and `train_from` is the first stage.
    """
    if not use_prefix_cache:
        return Feed(inputs=inputs, batch_size=batch_size, views=views, start=0, store=None)
    if inputs.pretrained.net.depth(train_from) == 0:
        raise ValueError("finetune.use_prefix_cache: nothing is frozen, so there is no prefix; set it to False")
    root = Path(config["cache_dir"]) / "prefix"
    store = call("prefix", config, cached_prefix, inputs, root, boundary=train_from, views=views)
    return Feed(inputs=inputs, batch_size=batch_size, views=views, start=train_from, store=store)


def cached_prefix(
    inputs: Inputs, root: Path, *, boundary: str, views: int, dtype: str, batch_size: int
) -> FeatureStore:
    """Return the complete store of prefix activations, in a folder of `root` named by all that determines them.

    The keywords are those of `features.prefix.build_prefix`.
    """
    pretrained = inputs.pretrained
    what = (pretrained.net, pretrained.params, pretrained.stats, inputs.source, pretrained.preprocess)
    spec = prefix_spec(*what, boundary=boundary, views=views, dtype=dtype)
    folder = root / plain.fingerprint(spec)[:16]
    return build_prefix(*what, folder, boundary=boundary, views=views, dtype=dtype, batch_size=batch_size)
