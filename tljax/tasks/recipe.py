"""The numbers of a fine-tuning run that no other section of the config holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tljax.data.augment import Augment
from tljax.data.bank import Bank
from tljax.tasks.sections import check_keys

KEEP = ("last", "best")
CACHES = ("auto", "always", "never")
COMPUTE_DTYPES = ("float32", "bfloat16")
# What a phase may say for itself; the rest is that of the config.
PHASE_KEYS = ("epochs", "groups", "schedule", "image_size", "cache")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`config.finetune`: how long, how often, how.

    Args:
        epochs: passes over the training images, of each phase that does not say otherwise.
        batch_size: images a step, over all devices.
        cache: whether the activations of the frozen prefix are computed once and trained on: "always", "never", or
            "auto" for where it is estimated to take less time and fits the budget and the disk; see `tasks.caching`.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations on the validation part.
        keep: the params that are tested and exported: those after the "last" step, or after the evaluation with the
            "best" accuracy on the validation part, of multi-label data the best mean average precision.
        average_decay: of an exponential moving average of the trained params, which is evaluated, tested and exported
            in their place; None keeps none.
        num_parts: parts of a batch that run one after the other; see `step.train_body`.
        compute_dtype: "float32", or "bfloat16" with float32 params; see `Net.apply`.
        use_remat: compute stages again in the backward pass; see `Net.apply`.
        adapt_statistics: let the BatchNorm statistics of frozen stages follow the new data.
        freeze_statistics: let BatchNorm of trained stages use the pretrained statistics, which then keep every bit; its
            scales and biases are trained unless `config.groups` says otherwise, and what is drawn at random is drawn.
        sampling: "uniform", or "class_balanced"; see `data.sampling`.
        drift_images: images of the validation part whose features are compared with those of the pretrained net at
            the end; 0 for none.
        cache_budget_gb: what the stored prefix of a phase may take, in units of 10^9 bytes.
        max_loss: a step with a loss above it ends the run, the last checkpoint kept; None ends it at NaN and infinity.
    """

    epochs: int
    batch_size: int
    cache: str
    checkpoint_every: int
    evaluate_every: int
    keep: str = "last"
    average_decay: float | None = None
    num_parts: int = 1
    compute_dtype: str = "float32"
    use_remat: bool = False
    adapt_statistics: bool = False
    freeze_statistics: bool = False
    sampling: str = "uniform"
    drift_images: int = 128
    cache_budget_gb: float = 20.0
    max_loss: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        counts = ("epochs", "batch_size", "checkpoint_every", "evaluate_every", "num_parts")
        problems = [f"{name} is {getattr(self, name)}, wanted at least 1" for name in counts if getattr(self, name) < 1]
        for name, known in (("cache", CACHES), ("keep", KEEP), ("compute_dtype", COMPUTE_DTYPES)):
            if getattr(self, name) not in known:
                problems.append(f"{name} is {getattr(self, name)!r}, wanted {' or '.join(map(repr, known))}")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            problems.append(f"average_decay is {self.average_decay}, wanted a number between 0 and 1, or None")
        if self.adapt_statistics and self.is_cached:
            problems.append("adapt_statistics moves what a cache stores; set it to False, or cache to 'never'")
        if self.adapt_statistics and self.freeze_statistics:
            problems.append("adapt_statistics moves the statistics that freeze_statistics keeps; set one to False")
        if problems:
            raise ValueError(f"config.finetune: {'; '.join(problems)}")
        multiple = jax.device_count() * self.num_parts
        if self.batch_size % multiple:
            parts = f" in {self.num_parts} parts" if self.num_parts > 1 else ""
            raise ValueError(
                f"config.finetune.batch_size is {self.batch_size}, which {jax.device_count()} devices cannot share "
                f"evenly{parts}; wanted a multiple of {multiple}"
            )

    @property
    def is_cached(self) -> bool:
        """Whether the prefix is stored; `tasks.caching` has decided where that was open."""
        return self.cache == "always"

    def num_steps(self, epochs: int, num_images: int) -> int:
        """Length of a phase; images that do not fill a last batch come first in the next epoch.

        Raises:
            ValueError: the images do not fill one batch.
        """
        num_steps = epochs * num_images // self.batch_size
        if num_steps < 1:
            raise ValueError(
                f"config.finetune: {epochs} epochs of {num_images} training images do not fill one batch of "
                f"{self.batch_size}; lower batch_size"
            )
        return num_steps


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """`config.prefix`: how the activations of a frozen prefix are stored.

    Args:
        dtype: "float16", "bfloat16" or "float32"; with float32 and without a bank a run is that from images.
        batch_size: images that one device computes together.
        bank: V, the number of fixed views of each image, of which the first is the image as it is and the others are
            changed as `config.augment` says, once and for all runs of one seed; every time an image comes, one of the V
            is drawn. None stores each of the `augment.views` flips and turns, where those are the only changes.
    """

    dtype: str
    batch_size: int
    bank: int | None = None

    def views(self, augment: Augment) -> Bank:
        """Return the views to store.

        Raises:
            ValueError: without a bank, changes other than flips and turns; with one, no changes, or too few views.
        """
        flips_and_turns = Augment(views=augment.views)
        if self.bank is None:
            if augment != flips_and_turns:
                raise ValueError(
                    "all of config.augment but views makes every image new, and a stored prefix has a few fixed views "
                    "of each: set config.prefix.bank to their number, leave these changes out, or set "
                    "finetune.cache to 'never'"
                )
            return Bank(views=augment.views)
        if augment == Augment():
            raise ValueError(f"config.prefix.bank is {self.bank} and config.augment changes nothing; leave bank out")
        return Bank(views=self.bank, augment=augment)


def phase_configs(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the config of each phase: that of the run, with what the phase says for itself in its place.

    Args:
        config: of the run; `config.phases` is a list of dicts with any of `PHASE_KEYS`. "groups" and "schedule" take
            the place of whole sections; "image_size" is that of `config.model`, the others are of `config.finetune`.

    Raises:
        ValueError: an unknown key, or no phase.
    """
    phases: Sequence[Mapping[str, Any]] = config.get("phases", ({},))
    if not phases:
        raise ValueError("config.phases is empty; leave it out for a run of one phase")
    configs = []
    for index, phase in enumerate(phases):
        check_keys(f"config.phases[{index}]", phase, PHASE_KEYS, ())
        changed = dict(config)
        changed |= {section: phase[section] for section in ("groups", "schedule") if section in phase}
        changed["finetune"] = {**config["finetune"], **{key: phase[key] for key in ("epochs", "cache") if key in phase}}
        if "image_size" in phase:
            changed["model"] = {**config["model"], "image_size": phase["image_size"]}
        configs.append(changed)
    return configs
