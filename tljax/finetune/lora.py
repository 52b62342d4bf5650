"""Low-rank deltas of kernels (LoRA; Hu et al. 2021, arXiv:2106.09685), as entries of the same flat dict.

The delta of "block_03/attn/query/kernel" is two entries, ".../kernel/lora_a" and ".../kernel/lora_b". No module knows
of them: `add_lora` puts them into the kernels before the net runs, and what trains is a matter of labels.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax import paths

Arrays = dict[str, Any]

A, B = "/lora_a", "/lora_b"

# Each names params before the head; "query_value" is the choice of Hu et al., section 4.2.
LORA_RULES: dict[str, tuple[str, ...]] = {
    "query_value": (r"(?!head/).*/attn/(query|value)/kernel",),
    "attention": (r"(?!head/).*/attn/(query|key|value|out)/kernel",),
    "linear": (r"(?!head/).*/(query|key|value|out|fc1|fc2|gate|linear)/kernel",),
    "convolutions": (r"(?!head/).*/(patch|conv\d*|shortcut)/kernel",),
    "all": (r"(?!head/).*/kernel",),
}


def is_lora(path: str) -> bool:
    """Tell whether a path is one half of a low-rank delta."""
    return path.endswith((A, B))


def init_lora(
    params_or_shapes: Mapping[str, Any], key: jax.Array, *, rules: str | Sequence[str], rank: int
) -> dict[str, jax.Array]:
    """Draw the deltas of chosen kernels; they are 0 until `lora_b` moves.

    For a linear kernel [i o] a is [i r] and b is [r o]. For that of a convolution [h w i o] a is [h w i r]: a
    convolution to r channels, then one of 1 x 1. `a` is normal with variance 1 / (h w i) and b is 0. Both are float32.

    Args:
        params_or_shapes: of the net.
        key: each kernel draws from its own fold of it, so that what it gets does not depend on the others chosen.
        rules: regexes over whole paths, or the name of a choice of `LORA_RULES`.
        rank: at least 1, and at most the rank that each chosen kernel can have.

    Raises:
        ValueError: an unknown choice, a rule that matches nothing or something that is no kernel of 2 or 4
            dimensions, or a rank out of range.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1; convolutions as in peft/tuners/lora/layer.py, `Conv2d`.
    """
    chosen = _choose(params_or_shapes, rules)
    shapes = {path: tuple(params_or_shapes[path].shape) for path in chosen}
    problems = []
    for path, shape in shapes.items():
        largest = min(math.prod(shape[:-1]), shape[-1]) if len(shape) in (2, 4) else 0
        if not path.endswith("/kernel") or not largest:
            problems.append(f"{path!r} {shape} is no kernel of 2 or 4 dimensions")
        elif not 1 <= rank <= largest:
            problems.append(f"rank is {rank}, wanted 1..{largest} for {path!r} {shape}")
    if problems:
        raise ValueError("rules and rank do not fit:\n  " + "\n  ".join(problems))
    lora: dict[str, jax.Array] = {}
    for path, shape in shapes.items():
        # A hash that is the same in every process, which Python's own is not.
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        deviation = 1 / math.sqrt(math.prod(shape[:-1]))
        lora[path + A] = deviation * jax.random.normal(own_key, (*shape[:-1], rank), jnp.float32)
        lora[path + B] = jnp.zeros((rank, shape[-1]), jnp.float32)
    return lora


def add_lora(params: Mapping[str, Any], *, scaling: float) -> Arrays:
    """Put the deltas into their kernels: `kernel + scaling * a @ b`, computed in float32.

    The net then computes `x W + scaling (x A) B`. In a convolution with groups the delta is of the kernel as it is
    stored, [h w i/groups o], and where kernels are standardised (BiT) it is added before that.

    Args:
        params: of the net, with deltas among them; without any, the same arrays come back.
        scaling: alpha / rank in the paper.

    Returns:
        The params without entries of deltas; differentiable in all that was given.

    Raises:
        ValueError: a delta without its other half or its kernel, or of another shape.

    Source:
        Hu et al. 2021, arXiv:2106.09685, equation 3.
    """
    merged, lora = paths.partition(params, lambda path: not is_lora(path))
    kernels = sorted({path.rsplit("/", 1)[0] for path in lora})
    problems = [problem for path in kernels for problem in _misfits(path, params)]
    if problems:
        raise ValueError("low-rank deltas do not fit:\n  " + "\n  ".join(problems))
    for path in kernels:
        kernel, a, b = (params[name] for name in (path, path + A, path + B))
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        # [..., i r] [r o] -> [..., i o]; at the default precision accelerators would round both to fewer bits.
        delta = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
        merged[path] = (kernel.astype(jnp.float32) + scaling * delta).astype(kernel.dtype)
    return merged


def _choose(names: Mapping[str, Any], rules: str | Sequence[str]) -> list[str]:
    if isinstance(rules, str):
        if rules not in LORA_RULES:
            hint = paths.did_you_mean(rules, LORA_RULES)
            raise ValueError(f"rules={rules!r}{hint}, wanted one of {', '.join(LORA_RULES)}, or a list of regexes")
        rules = LORA_RULES[rules]
    unused = [rule for rule in rules if not any(paths.matches_any([rule], path) for path in names)]
    if unused or not rules:
        hints = [f"rule {rule!r} matches nothing{paths.did_you_mean(rule, names)}" for rule in unused]
        raise ValueError("; ".join(hints) or "rules are empty, wanted at least one")
    return [path for path in names if paths.matches_any(rules, path)]


def _misfits(kernel: str, params: Mapping[str, Any]) -> list[str]:
    missing = [name for name in (kernel, kernel + A, kernel + B) if name not in params]
    if missing:
        near = [path for path in params if not is_lora(path)]
        return [f"{name!r} is missing{paths.did_you_mean(name, near)}" for name in missing]
    shape, a, b = (tuple(params[name].shape) for name in (kernel, kernel + A, kernel + B))
    is_fitting = len(b) == 2 and len(a) == len(shape) and (*a[:-1], b[1]) == shape and a[-1] == b[0]
    return [] if is_fitting else [f"{kernel!r} {shape} does not fit lora_a {a} and lora_b {b}"]
