"""What a result depends on beside its config and inputs: versions, devices, settings, processor, git state."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from tljax import plain

# Of JAX, that change numbers.
_JAX_SETTINGS = (
    "jax_default_matmul_precision", "jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Describe what a result depends on beside the config: versions, devices, git state, processor."""
    packages = (
        "tljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "simplejpeg",
        "tensorflow-datasets",
    )  # fmt: skip
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in packages},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "num_processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "jax_settings": {name: str(getattr(jax.config, name)) for name in _JAX_SETTINGS},
        "cpu": _processor(),
        "cpu_count": os.cpu_count(),
        "git": _git_state(),
        "git_changes": _git_changes(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> dict[str, Any]:
    """Describe the processor, whose kind decides how XLA computes on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        # Not Linux.
        return {"model": platform.processor(), "features": None, "usable": os.cpu_count()}
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    features = [fields[name] for name in ("flags", "Features") if name in fields]
    model = [fields[name] for name in ("model name", "CPU part") if name in fields]
    return {
        "model": model[0] if model else platform.machine(),
        "features": plain.fingerprint(sorted(features[0].split()))[:12] if features else None,
        "usable": len(os.sched_getaffinity(0)),
    }


def _git_changes() -> str | None:
    """Hash what the source tree has that its commit has not; None where that is nothing, or there is no checkout."""
    changes = _git("--no-optional-locks", "diff", "HEAD", "--no-ext-diff")
    return plain.fingerprint(changes)[:12] if changes else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_state() -> str:
    """Commit of the source tree, with `-dirty` when it has changes; `unknown` outside a checkout."""
    commit = _git("describe", "--always", "--abbrev=12")
    # Not `describe --dirty`: it locks the index, and a process that is killed would leave the lock behind.
    changes = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str | None:
    """Return what git says of the source tree; None where it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
