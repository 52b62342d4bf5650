"""How a run is executed, as against what it computes: the section of the config that a run is not known by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax

from tljax.data.workers import check_num_workers
from tljax.models.kernels import PALLAS, Kernels, platform
from tljax.tasks.sections import EXECUTION, call_optional, check_keys


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`config.execution`: may differ each time that a run goes on, and changes its numbers by rounding at most.

    Args:
        fsdp: number of devices that share one copy of params and optimizer state between them; 1 gives each device a
            copy of its own, which is faster where it fits.
        save_timeout_s: what a checkpoint of several processes may take, from the first byte to the last. Where one of
            them cannot write, the others wait so long before all end.
        num_workers: processes that load images, at most the number of cores; 0 loads in threads, which is enough where
            a step takes longer than its images. `tljax bench data` measures it.
        image_cache_gb: what decoded images may take on the disk of `config.cache_dir`, in units of 10^9 bytes, for each
            data set and preparation, so that each image is decoded once; 0 keeps none.
        compiled_dir: folder where compiled programs are kept for later runs, beside the run directory if it is no whole
            path; None keeps none. See `tasks.compiled`.
        kernels: ways to compute parts of a network, as keyword arguments of `models.kernels.Kernels`; those that are
            not named suit the device.

    Raises:
        ValueError: a number out of range.
    """

    fsdp: int = 1
    save_timeout_s: int = 300
    num_workers: int = 0
    image_cache_gb: float = 0.0
    compiled_dir: str | None = ".compiled"
    kernels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that no machine has."""
        counts = ("fsdp", "save_timeout_s")
        problems = [f"{name} is {getattr(self, name)}, wanted at least 1" for name in counts if getattr(self, name) < 1]
        if self.image_cache_gb < 0:
            problems.append(f"image_cache_gb is {self.image_cache_gb}, wanted at least 0")
        try:
            check_num_workers(self.num_workers)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError(f"config.execution: {'; '.join(problems)}")
        check_keys("config.execution.kernels", self.kernels, [item.name for item in fields(Kernels)], ())
        if self.chosen_kernels.use_pallas and jax.device_count() > 1 and platform() != "cpu":
            raise ValueError(
                f"config.execution.kernels: {PALLAS!r} kernels run on one device, and there are {jax.device_count()}; "
                "leave them out, or show the program one device"
            )

    @property
    def chosen_kernels(self) -> Kernels:
        """Return the kernels."""
        return Kernels(**self.kernels)

    def compiled_folder(self, workdir: str | Path) -> Path | None:
        """Return where compiled programs are kept for a run in that directory."""
        return None if self.compiled_dir is None else Path(workdir).absolute().parent / self.compiled_dir


def execution_of(config: Mapping[str, Any]) -> Execution:
    """Return `config.execution`, or how a run is executed without one."""
    return call_optional(EXECUTION, config, Execution, Execution())


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that a run directory and its checkpoints are compared by."""
    return {name: value for name, value in config.items() if name != EXECUTION}
