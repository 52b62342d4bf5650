"""What stages draw in training: dropout and stochastic depth.

Modules hold no generator: the keys come with the call, one for each example, so that a draw depends on the example's
place in the whole batch and not on how that is divided over devices or passes.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class Regularise:
    """`config.regularise`: how much of a net is left out in a training step.

    Args:
        dropout: share of the features before the classifier, and of the outputs of a VGG's first linear layers, that
            are set to 0 (Srivastava et al. 2014); what is kept is scaled up to the same mean.
        stochastic_depth: share of the examples that skip the residual branches of the last block; it falls linearly
            to 0 at the first (Huang et al. 2016, arXiv:1603.09382, equation 4).
    """

    dropout: float = 0.0
    stochastic_depth: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing."""
        for name in ("dropout", "stochastic_depth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"regularise.{name} is {getattr(self, name)}, wanted 0 <= {name} < 1")

    @property
    def is_on(self) -> bool:
        """Tell whether anything is drawn."""
        return self.dropout > 0 or self.stochastic_depth > 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Noise:
    """The draws of one stage.

    Args:
        keys: one for each example of the batch.
        dropout: share of units to drop.
        stochastic_depth: share of examples whose residual branches are left out.
    """

    keys: Key[Array, " b"]
    dropout: float = field(metadata={"static": True})
    stochastic_depth: float = field(metadata={"static": True})


def stage_rates(net: Any, regularise: Regularise) -> dict[str, dict[str, float]]:
    """Return {stage: {"dropout", "stochastic_depth"}}, the shares that each stage that draws leaves out.

    Args:
        net: the architecture.
        regularise: for the whole of it.
    """
    branches, droppers = net.branch_stages, net.dropout_stages
    # 0 at the first block, all of it at the last.
    depths = {stage: index / max(len(branches) - 1, 1) for index, stage in enumerate(branches)}
    rates = {
        stage: {
            "dropout": regularise.dropout * (stage in droppers),
            "stochastic_depth": regularise.stochastic_depth * depths.get(stage, 0.0),
        }
        for stage in (*branches, *droppers)
    }
    return {stage: shares for stage, shares in rates.items() if any(shares.values())}


def stage_noises(net: Any, regularise: Regularise | None, keys: Key[Array, " b"] | None) -> dict[str, Noise]:
    """Say what each stage that draws is to draw.

    Args:
        net: the architecture.
        regularise: None for nothing.
        keys: one for each example.

    Raises:
        ValueError: there are no keys, or there is stochastic depth for a network without residual branches.
    """
    if regularise is None or not regularise.is_on:
        return {}
    if keys is None:
        raise ValueError("regularise draws at random and needs keys, one for each example")
    if regularise.stochastic_depth and not net.branch_stages:
        raise ValueError("regularise.stochastic_depth leaves out residual branches, and this network has none")
    return {
        stage: Noise(keys=jax.vmap(jax.random.fold_in, (0, None))(keys, net.stages.index(stage)), **rates)
        for stage, rates in stage_rates(net, regularise).items()
    }


def drop_units(x: Float[Array, "b *rest"], noise: Noise | None) -> Float[Array, "b *rest"]:
    """Set each unit to 0 with the probability `noise.dropout`, and scale up the others."""
    return x if noise is None else _drop(x, noise.keys, noise.dropout, x.shape[1:], site=0)


def drop_branch(x: Float[Array, "b *rest"], noise: Noise | None, *, branch: int) -> Float[Array, "b *rest"]:
    """Leave a residual branch out of some examples, and scale up the others; branches of a stage draw on their own."""
    shape = (1,) * (x.ndim - 1)
    return x if noise is None else _drop(x, noise.keys, noise.stochastic_depth, shape, site=1 + branch)


def _drop(x: Array, keys: Array, rate: float, shape: tuple[int, ...], *, site: int) -> Array:
    if not rate:
        return x
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, shape)  # noqa: E731
    kept = jnp.broadcast_to(jax.vmap(draw)(keys), x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
