"""Which of several ways to compute the same thing the layers of a network take, by what they run on."""

import functools
import logging
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tljax.paths import did_you_mean

log = logging.getLogger(__name__)

AUTO, CUDNN, XLA, CHEAP, PLAIN, PALLAS = "auto", "cudnn", "xla", "cheap", "plain", "pallas"
_CHOICES = {
    "attention": (AUTO, CUDNN, XLA),
    "gelu": (AUTO, CHEAP, PLAIN),
    "layer_norm": (PLAIN, PALLAS),
    "bias_gelu": (PLAIN, PALLAS),
}
# What cuDNN's fused attention takes on any GPU that has it: jax/_src/cudnn/fused_attention_stablehlo.py,
# check_is_flash_attention.
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_HEAD_WIDTHS = range(8, 129, 8)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Ways to compute the parts of a transformer block, which differ by speed and by rounding alone.

    Args:
        attention: "cudnn" is NVIDIA's fused attention, in bfloat16 and float16; "xla" is the plain formula; "auto"
            takes the first on NVIDIA GPUs, for dtypes and head widths that it can.
        gelu: "cheap" is the exact GELU of `models.gelu`, "plain" that of XLA; "auto" takes the first on GPUs.
        layer_norm: "pallas" takes the kernels of `models.fused`, "plain" leaves it to XLA.
        bias_gelu: likewise for the exact GELU of an MLP and the bias before it; then `gelu` does not matter.

    Raises:
        ValueError: there is no such way.
    """

    attention: str = AUTO
    gelu: str = AUTO
    layer_norm: str = PLAIN
    bias_gelu: str = PLAIN

    def __post_init__(self) -> None:
        """Refuse ways that there are not."""
        problems = [
            f"{name} is {getattr(self, name)!r}{did_you_mean(getattr(self, name), known)}, wanted {', '.join(known)}"
            for name, known in _CHOICES.items()
            if getattr(self, name) not in known
        ]
        if problems:
            raise ValueError(f"kernels: {'; '.join(problems)}")

    @property
    def use_pallas(self) -> bool:
        """Tell whether any kernel of our own is used, which XLA cannot divide over devices."""
        return PALLAS in (self.layer_norm, self.bias_gelu)


def platform() -> str:
    """Name what programs are compiled for: "cpu", "cuda", "rocm", "tpu", ..."""
    name = jax.default_backend()
    if name != "gpu":
        return name
    # As JAX itself tells them apart.
    return "cuda" if "cuda" in jax.local_devices()[0].client.platform_version else "rocm"


def attention_way(kernels: Kernels, dtype: Any, head_width: int) -> str:
    """Return "cudnn" or "xla" for the attention of tokens to themselves.

    Raises:
        ValueError: "cudnn" is wanted, and cannot compute this.
    """
    fits = jnp.dtype(dtype) in map(jnp.dtype, _CUDNN_DTYPES) and head_width in _CUDNN_HEAD_WIDTHS
    if kernels.attention == CUDNN and not fits:
        raise ValueError(
            f"kernels.attention is {CUDNN!r}, which takes bfloat16 or float16 and heads of 8, 16, ... 128 channels, "
            f"and got {jnp.dtype(dtype).name} and {head_width}; compute in bfloat16, or choose {AUTO!r}"
        )
    if kernels.attention == AUTO:
        return _chosen("attention", CUDNN if fits and platform() == "cuda" else XLA)
    return kernels.attention


def gelu_way(kernels: Kernels) -> str:
    """Return "cheap" or "plain" for the exact GELU."""
    # On CPUs neither is faster: XLA's erf costs three times the operations, and waits for memory as long.
    return _chosen("gelu", CHEAP if platform() in ("cuda", "rocm") else PLAIN) if kernels.gelu == AUTO else kernels.gelu


def describe(kernels: Kernels, dtype: Any, head_width: int) -> str:
    """Say in a line which ways are taken here."""
    gelu = f"together with its bias in {PALLAS}" if kernels.bias_gelu == PALLAS else gelu_way(kernels)
    return (
        f"on {platform()}: attention {attention_way(kernels, dtype, head_width)}, exact GELU {gelu}, "
        f"LayerNorm {kernels.layer_norm}"
    )


@functools.cache
def _chosen(name: str, way: str) -> str:
    """Return the way, and say it once."""
    if way not in (XLA, PLAIN):
        log.info("%s: %s", name, way)
    return way
