"""How a run is executed, as against what it computes: the section of the config that a run is not known by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tljax.tasks.sections import EXECUTION, call_optional


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`config.execution`: may differ each time that a run goes on, and changes its numbers by rounding at most.

    Args:
        fsdp: number of devices that share one copy of params and optimizer state between them; 1 gives each device a
            copy of its own, which is faster where it fits.
        save_timeout_s: what a checkpoint of several processes may take, from the first byte to the last. Where one of
            them cannot write, the others wait so long before all end.

    Raises:
        ValueError: a number out of range.
    """

    fsdp: int = 1
    save_timeout_s: int = 300

    def __post_init__(self) -> None:
        """Refuse numbers that no machine has."""
        counts = ("fsdp", "save_timeout_s")
        problems = [f"{name} is {getattr(self, name)}, wanted at least 1" for name in counts if getattr(self, name) < 1]
        if problems:
            raise ValueError(f"config.execution: {'; '.join(problems)}")


def execution_of(config: Mapping[str, Any]) -> Execution:
    """Return `config.execution`, or how a run is executed without one."""
    return call_optional(EXECUTION, config, Execution, Execution())


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that a run directory and its checkpoints are compared by."""
    return {name: value for name, value in config.items() if name != EXECUTION}
