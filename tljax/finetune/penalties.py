"""Penalties that keep a fine-tuned net near what it knew: terms that are added to the loss of a batch.

A penalty is a frozen dataclass of settings that is called with what a step knows and returns a number. The next one
is a class with the three members of `Penalty`, and a word in `PENALTIES`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from tljax.models.net import HEAD
from tljax.models.pooling import pool
from tljax.paths import did_you_mean, diff, stage_of

Arrays = dict[str, Any]
Scalar = Float32[Array, ""]


@dataclass(frozen=True, kw_only=True)
class PenaltyInputs:
    """What a step knows when it computes its loss.

    Args:
        params: the trained params, to be differentiated.
        original: their pretrained values, same paths; those of a fresh head are its initial ones.
        outputs: {stage: output in this pass} of the stages that are tapped: tokens [b n d], maps [b h w c] or
            features [b d].
        original_outputs: the same of the pretrained net; may be empty where no penalty needs it.
    """

    params: Arrays
    original: Arrays
    outputs: Arrays
    original_outputs: Arrays


@runtime_checkable
class Penalty(Protocol):
    """A term of the loss, differentiated with respect to the trained params."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Stages whose outputs it reads."""
        ...

    @property
    def needs_original(self) -> bool:
        """Whether it reads `original_outputs`, which cost a second forward pass."""
        ...

    def __call__(self, inputs: PenaltyInputs) -> Scalar:
        """Return the term, times its strength."""
        ...


@dataclass(frozen=True, kw_only=True)
class L2SP:
    """Pull params towards their pretrained values, and those of the head towards 0.

    `strength / 2 * ||w - w0||^2 + head_strength / 2 * ||w_head||^2`, over the trained params.

    Args:
        strength: the paper's alpha, on all stages but the head.
        head_strength: its beta, on the head, which has no starting point.

    Raises:
        ValueError: a strength below 0; when called, an original of other paths or shapes.

    Source:
        Li, Grandvalet and Davoine 2018, arXiv:1802.01483, the penalty L2-SP. Weight decay beside it pulls
        everything towards 0 as well: set that of the optimizer to 0.
    """

    strength: float | jax.Array
    head_strength: float | jax.Array

    taps: ClassVar[tuple[str, ...]] = ()
    needs_original: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_strengths(strength=self.strength, head_strength=self.head_strength)

    def __call__(self, inputs: PenaltyInputs) -> Scalar:
        """Measure how far the params are from where they started."""
        problems = diff(inputs.original, inputs.params)
        if problems:
            raise ValueError("the original values do not fit the trained params:\n  " + "\n  ".join(problems))
        total = jnp.zeros((), jnp.float32)
        for path, param in inputs.params.items():
            is_head = stage_of(path) == HEAD
            start = jnp.zeros_like(param) if is_head else jax.lax.stop_gradient(inputs.original[path])
            distance = jnp.sum(jnp.square(param.astype(jnp.float32) - start.astype(jnp.float32)))
            total += (self.head_strength if is_head else self.strength) / 2 * distance
        return total


@dataclass(frozen=True, kw_only=True)
class BSS:
    """Shrink the directions in which the features of a batch vary least: those that transfer worst.

    `strength * (sum of the squares of the num_smallest smallest singular values)` of the features [b d] of a batch,
    which are not centred. Tokens and maps are averaged over all tokens (class token too) or positions first.

    Args:
        strength: the paper's eta.
        num_smallest: its k, at least 1.
        stage: whose output is penalised; the paper takes what the head reads.

    Raises:
        ValueError: a strength below 0 or no singular values; when called, more of them than the batch has.

    Source:
        Chen et al. 2019, Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer
        Learning (NeurIPS), the regulariser of BSS. Under `jax.pmap` the batch is a device's share.
    """

    strength: float | jax.Array
    num_smallest: int
    stage: str

    needs_original: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_strengths(strength=self.strength)
        if self.num_smallest < 1:
            raise ValueError(f"num_smallest is {self.num_smallest}, wanted 1 or more singular values")

    @property
    def taps(self) -> tuple[str, ...]:
        """The penalised stage."""
        return (self.stage,)

    def __call__(self, inputs: PenaltyInputs) -> Scalar:
        """Sum what the smallest directions hold."""
        features = pool(inputs.outputs[self.stage].astype(jnp.float32), "mean", 0)
        num_values = min(features.shape)
        if self.num_smallest > num_values:
            raise ValueError(
                f"num_smallest is {self.num_smallest}, wanted 1 to {num_values}: features of stage {self.stage!r} "
                f"have shape {features.shape} and no more singular values"
            )
        # With singular vectors U held fixed, the squares sum to ||U^T F||^2, whose gradient 2 U U^T F is that of the
        # penalty (second derivatives are not) and finite where values are equal or 0. Eigenvalues of F F^T would
        # have it too, but lose half the digits to squaring.
        left, _, _ = jnp.linalg.svd(jax.lax.stop_gradient(features), full_matrices=False)
        # TF32 and bfloat16 products, the default of accelerators, would drown small values in the large ones.
        smallest = jnp.matmul(left[:, -self.num_smallest :].T, features, precision="highest")
        return self.strength * jnp.sum(jnp.square(smallest))


@dataclass(frozen=True, kw_only=True)
class FeatureDistillation:
    """Keep what stages give near to what they gave before fine-tuning.

    `strength * mean over stages of the mean of (output - original output)^2`, over all examples, positions and
    channels.

    Args:
        strength: factor on the mean of the stages.
        stages: whose outputs are compared; not the head, whose original is an untrained one.

    Raises:
        ValueError: a strength below 0, no stages or the head; when called, outputs of different shapes.

    Source:
        Romero et al. 2015, arXiv:1412.6550, equation 3 without the regressor, and a mean for half a sum;
        Li et al. 2019, arXiv:1901.09229 (DELTA), without its attention.
    """

    strength: float | jax.Array
    stages: tuple[str, ...]

    needs_original: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_strengths(strength=self.strength)
        if isinstance(self.stages, str) or not self.stages or HEAD in self.stages:
            raise ValueError(f"stages is {self.stages!r}, wanted a sequence of one or more stages before {HEAD!r}")

    @property
    def taps(self) -> tuple[str, ...]:
        """The compared stages."""
        return self.stages

    def __call__(self, inputs: PenaltyInputs) -> Scalar:
        """Compare the outputs of every stage."""
        total = jnp.zeros((), jnp.float32)
        for stage in self.stages:
            output, wanted = inputs.outputs[stage], jax.lax.stop_gradient(inputs.original_outputs[stage])
            if output.shape != wanted.shape:
                raise ValueError(f"stage {stage!r} gives {output.shape}, and the original net {wanted.shape}")
            total += jnp.mean(jnp.square(output.astype(jnp.float32) - wanted.astype(jnp.float32)))
        return self.strength / len(self.stages) * total


PENALTIES: dict[str, Any] = {"l2_sp": L2SP, "bss": BSS, "distillation": FeatureDistillation}


def make_penalties(stages: Sequence[str], section: Mapping[str, Mapping[str, Any]]) -> tuple[Penalty, ...]:
    """Build the penalties of a config section.

    Args:
        stages: of the network.
        section: {name: settings}, such as `{"l2_sp": {"strength": 0.1, "head_strength": 0.01}}`.

    Raises:
        ValueError: an unknown penalty or stage, unknown or missing settings, or values out of range; all in one
            message.
    """
    penalties, problems = [], []
    for name, settings in section.items():
        try:
            penalties.append(_make(stages, name, settings))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("penalties do not fit:\n  " + "\n  ".join(problems))
    return tuple(penalties)


def _make(stages: Sequence[str], name: str, settings: Mapping[str, Any]) -> Penalty:
    if name not in PENALTIES:
        raise ValueError(f"no such penalty{did_you_mean(name, PENALTIES)}; penalties are {', '.join(PENALTIES)}")
    known = [field.name for field in dataclasses.fields(PENALTIES[name])]
    wrong = [f"no setting {key!r}{did_you_mean(key, known)}" for key in settings if key not in known]
    wrong += [f"setting {key!r} is missing" for key in known if key not in settings]
    if wrong:
        raise ValueError("; ".join(wrong) + f". Settings: {', '.join(known)}")
    # A config has lists where a penalty, which a compiled step closes over, needs tuples.
    penalty = PENALTIES[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
    wrong = [f"no stage {tap!r}{did_you_mean(tap, stages)}" for tap in penalty.taps if tap not in stages]
    if wrong:
        raise ValueError("; ".join(wrong) + f". Stages: {', '.join(stages)}")
    return penalty


def _check_strengths(**strengths: float | jax.Array) -> None:
    for name, value in strengths.items():
        # Of an array, a step that is compiled for many runs does not know the value.
        if not isinstance(value, jax.Array) and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, wanted a finite number of 0 or more")
