"""Which processes belong to a run: said by flags, or found from what started them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Group:
    """Which processes belong together, where no cluster says so.

    Args:
        coordinator: "HOST:PORT" of process 0, which listens there.
        num_processes: how many there are.
        process_id: which of them this one is, from 0.

    Raises:
        ValueError: a number or the address cannot be.
    """

    coordinator: str
    num_processes: int
    process_id: int

    def __post_init__(self) -> None:
        """Refuse what JAX would wait for in vain."""
        if not self.coordinator.rpartition(":")[2].isdigit() or ":" not in self.coordinator:
            raise ValueError(f"the coordinator is {self.coordinator!r}, wanted HOST:PORT of process 0")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"process_id is {self.process_id} of {self.num_processes} processes; wanted 0 to num_processes - 1"
            )


def found_processes(environment: Mapping[str, str]) -> int:
    """Return how many processes SLURM, Open MPI or a TPU pod has started together with this one; 1 where none has."""
    # The names that JAX's own detection reads.
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():
        return int(environment["SLURM_NTASKS"])
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"])
    if environment.get("TPU_WORKER_HOSTNAMES"):
        return len(environment["TPU_WORKER_HOSTNAMES"].split(","))
    return 1
