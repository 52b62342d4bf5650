"""How strongly the gradient pulls at each stage, and rates and choices from that (Auto-RGN).

Source:
    Lee et al. 2023, arXiv:2210.11466, section 5. Deviations: the paper measures every tensor but those of norms, and
    again each epoch; here a stage is measured as a whole, and once for a phase of the run, so that the rates of a phase
    stay a function of the step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from tljax import paths
from tljax.finetune.groups import HEAD


def relative_gradient_norms(
    grads: Mapping[str, Any], params: Mapping[str, Any], stages: Sequence[str]
) -> dict[str, float]:
    """Return |gradient| / |params| of each stage before the head, in order of depth.

    The head is left out: its weights are new, so that their norm says nothing.

    Args:
        grads: of some or all params; the norms of a stage are over the paths given here.
        params: at least these paths.
        stages: of the network, in order of depth; the last is the head.

    Raises:
        ValueError: a gradient without its param, of no stage, or not finite; a stage whose params are all 0; or no
            gradient before the head.
    """
    strangers = sorted(path for path in grads if path not in params or paths.stage_of(path) not in stages)
    if strangers:
        hint = paths.did_you_mean(strangers[0], params)
        raise ValueError(f"{len(strangers)} gradients have no param, or no stage, the first is {strangers[0]!r}{hint}")
    norms: dict[str, float] = {}
    for stage in stages[:-1]:
        inside = [path for path in grads if paths.stage_of(path) == stage]
        if inside:
            gradient, weight = (_norm([values[path] for path in inside]) for values in (grads, params))
            norms[stage] = gradient / weight if weight else math.nan
    wrong = [stage for stage, norm in norms.items() if not math.isfinite(norm)]
    if wrong or not norms:
        raise ValueError(
            f"stages {', '.join(wrong)} have gradients that are not finite, or params that are all 0"
            if wrong
            else f"no gradient before the head; stages are {', '.join(stages)}"
        )
    return norms


def rgn_factors(norms: Mapping[str, float]) -> dict[str, float]:
    """Scale the norms to a highest of 1, for `Groups.with_stage_factors`; the head has 1.

    Raises:
        ValueError: no norm is above 0.
    """
    highest = max(norms.values(), default=0.0)
    if not highest > 0:
        raise ValueError(f"norms are {dict(norms)}, wanted one above 0")
    return {**{stage: norm / highest for stage, norm in norms.items()}, HEAD: 1.0}


def choose_stages(norms: Mapping[str, float], *, count: int) -> tuple[str, ...]:
    """Return the stages with the largest norms, in the order of `norms`; with the head, the `stages_trained` of groups.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(norms):
        raise ValueError(f"count is {count}, wanted 1..{len(norms)}: the norms are of {', '.join(norms)}")
    largest = sorted(norms, key=lambda stage: -norms[stage])[:count]
    return tuple(stage for stage in norms if stage in largest)


def _norm(values: Sequence[Any]) -> float:
    return float(optax.tree.norm([jnp.asarray(value, jnp.float32) for value in values]))
