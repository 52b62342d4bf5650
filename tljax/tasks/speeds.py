"""How fast this machine multiplies and writes, in a second or two of trying."""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

_SIDE = 1024
_WRITTEN_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Of all devices together, and of the disk."""

    flops_per_s: float
    disk_bytes_per_s: float


def measure_speeds(folder: str | os.PathLike) -> Speeds:
    """Time a product of matrices, and the writing of a file that is gone afterwards.

    Args:
        folder: whose disk to measure; it need not be there.
    """
    square = jnp.ones((_SIDE, _SIDE), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    began = time.perf_counter()
    multiply(square, square).block_until_ready()
    flops_per_s = 2 * _SIDE**3 / (time.perf_counter() - began)
    with tempfile.TemporaryFile(dir=_existing(folder)) as file:
        began = time.perf_counter()
        file.write(bytes(_WRITTEN_BYTES))
        file.flush()
        os.fsync(file.fileno())
        disk_bytes_per_s = _WRITTEN_BYTES / (time.perf_counter() - began)
    # Devices of a CPU share its cores.
    num_devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    return Speeds(flops_per_s=num_devices * flops_per_s, disk_bytes_per_s=disk_bytes_per_s)


def free_bytes(folder: str | os.PathLike) -> int:
    """Return what is free on the disk of a folder, which need not be there."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: str | os.PathLike) -> Path:
    path = Path(folder).absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
