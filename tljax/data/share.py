"""The rows of every batch that one of several processes reads."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Share:
    """A process and the number of processes that read a batch together; the default reads the whole.

    Args:
        index: of the process, from 0.
        count: of processes.

    Raises:
        ValueError: there is no such process.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"share {self.index} of {self.count}: wanted an index from 0 to count - 1")

    def rows(self, batch_size: int) -> range:
        """Return the rows of a batch that are this process's; those of all processes, in order, are the batch.

        Args:
            batch_size: rows of the whole batch.

        Raises:
            ValueError: the processes cannot share the batch evenly, as devices of one mesh have to.
        """
        if batch_size < 1 or batch_size % self.count:
            raise ValueError(
                f"batch_size is {batch_size}, which {self.count} processes cannot share evenly; wanted a multiple of "
                f"{self.count}"
            )
        size = batch_size // self.count
        return range(self.index * size, (self.index + 1) * size)


WHOLE = Share()
