"""Which of several ways to compute the same thing the layers of a network take, by what they run on."""

import dataclasses
import functools
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

from tljax.paths import did_you_mean

log = logging.getLogger(__name__)

AUTO, CUDNN, XLA, CHEAP, PLAIN, PALLAS, FOLDED = "auto", "cudnn", "xla", "cheap", "plain", "pallas", "folded"
_OWN = (AUTO, PALLAS, PLAIN)
_CHOICES = {
    "attention": (AUTO, CUDNN, XLA),
    "gelu": (AUTO, CHEAP, PLAIN),
    "layer_norm": _OWN,
    "bias_gelu": _OWN,
    "batch_norm": _OWN,
    "stem": (AUTO, FOLDED, PLAIN),
}
# What cuDNN's fused attention takes on any GPU that has it: jax/_src/cudnn/fused_attention_stablehlo.py,
# check_is_flash_attention.
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_HEAD_WIDTHS = range(8, 129, 8)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Ways to compute parts of a network, which differ by speed and by rounding alone.

    Args:
        attention: "cudnn" is NVIDIA's fused attention, in bfloat16 and float16; "xla" is the plain formula; "auto"
            takes the first on NVIDIA GPUs, for dtypes and head widths that it can.
        gelu: "cheap" is the exact GELU of `models.gelu`, "plain" that of XLA; "auto" takes the first on GPUs.
        layer_norm: of a transformer block: "pallas" takes the kernels of `models.fused`, "plain" leaves it to XLA;
            "auto" takes the first where a single NVIDIA GPU is all there is.
        bias_gelu: likewise for the exact GELU of an MLP and the bias before it; then `gelu` does not matter.
        batch_norm: likewise for BatchNorm in training mode, by the kernels of `models.fused_batch_norm`.
        stem: the first convolution of a ResNet: "folded" is that of `models.folded`, "plain" that of XLA; "auto" takes
            the first on NVIDIA GPUs.

    Raises:
        ValueError: there is no such way.
    """

    attention: str = AUTO
    gelu: str = AUTO
    layer_norm: str = AUTO
    bias_gelu: str = AUTO
    batch_norm: str = AUTO
    stem: str = AUTO

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
        """Tell whether kernels of our own are asked for, which XLA cannot divide over devices."""
        return PALLAS in (self.layer_norm, self.bias_gelu, self.batch_norm)

    @property
    def without_own(self) -> "Kernels":
        """The same, with the plain forms in the place of kernels of our own."""
        return dataclasses.replace(self, layer_norm=PLAIN, bias_gelu=PLAIN, batch_norm=PLAIN)


# What XLA looks into when it counts.
PLAIN_FORMULAS = Kernels(attention=XLA, gelu=PLAIN, stem=PLAIN).without_own


def platform() -> str:
    """Name what programs are compiled for: "cpu", "cuda", "rocm", "tpu", ..."""
    config: Any = jax.config
    chosen = config.jax_default_device
    name = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
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


def stem_way(kernels: Kernels) -> str:
    """Return "folded" or "plain" for the first convolution of a ResNet."""
    return _chosen("stem", FOLDED if platform() == "cuda" else PLAIN) if kernels.stem == AUTO else kernels.stem


def own_way(name: str, kernels: Kernels) -> str:
    """Return "pallas" or "plain" for one of `layer_norm`, `bias_gelu` and `batch_norm`."""
    way = getattr(kernels, name)
    if way != AUTO:
        return way
    # The Triton backend of Pallas, which they are written for, is deprecated in JAX 0.11.
    is_alone = platform() == "cuda" and jax.device_count() == 1
    return _chosen(name, PALLAS if is_alone and find_spec("jax.experimental.pallas.triton") else PLAIN)


def describe(kernels: Kernels, dtype: Any, head_width: int) -> str:
    """Say in a line which ways are taken here, in a network with heads of so many channels; 0 for one of BatchNorm."""
    if not head_width:
        norm = own_way("batch_norm", kernels)
        return f"on {platform()}: BatchNorm in training mode {norm}, first convolution of a ResNet {stem_way(kernels)}"
    has_own = own_way("bias_gelu", kernels) == PALLAS
    gelu = f"together with its bias in {PALLAS}" if has_own else gelu_way(kernels)
    return (
        f"on {platform()}: attention {attention_way(kernels, dtype, head_width)}, exact GELU {gelu}, "
        f"LayerNorm {own_way('layer_norm', kernels)}"
    )


@functools.cache
def _chosen(name: str, way: str) -> str:
    """Return the way, and say it once."""
    if way not in (XLA, PLAIN):
        log.info("%s: %s", name, way)
    return way
