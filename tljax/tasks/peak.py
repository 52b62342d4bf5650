"""What a device can multiply at most: from its maker's data sheet, or else measured."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

# TFLOP/s in bfloat16 with float32 sums, of dense matrices, by `device_kind`. NVIDIA: the data sheets of H100, H200,
# A100, L40S and L4, where those give numbers "with sparsity" half of them. Google: cloud.google.com/tpu/docs, the page
# of each version.
BFLOAT16_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}
_SIDES = {"cpu": 1024}
_SIDE = 8192
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that one device multiplies.

    Args:
        flops_per_s: a multiply-add as two.
        source: "data sheet", or "measured" with a large product of matrices.
    """

    flops_per_s: float
    source: str


def peak_of(device: Any, dtype: str) -> Peak:
    """Return the peak of a JAX device for products of that dtype."""
    known = BFLOAT16_TFLOPS.get(device.device_kind) if dtype == "bfloat16" else None
    if known is not None:
        return Peak(flops_per_s=1e12 * known, source="data sheet")
    return Peak(flops_per_s=_measure(device, dtype), source="measured")


def _measure(device: Any, dtype: str) -> float:
    """Time products of random matrices; the fastest counts, as nothing makes one faster than it can be."""
    side = _SIDES.get(device.platform, _SIDE)
    matrix = jax.device_put(jax.random.normal(jax.random.key(0), (side, side)).astype(dtype), device)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)
