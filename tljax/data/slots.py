"""Batches in shared memory: where each lies."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from tljax.data.loading import Row

_PAGE_BYTES = 4096


class SlotLayout(NamedTuple):
    """How batches lie in the shared memory: each in a slot, first its rows, then its images."""

    batch_size: int
    shape: tuple[int, ...]
    num_slots: int

    @property
    def header_bytes(self) -> int:
        """Size of the rows, up to where images are aligned as devices like it."""
        return _round_up(self.batch_size * len(Row._fields) * 8)

    @property
    def slot_bytes(self) -> int:
        """Size of a slot."""
        return self.header_bytes + _round_up(self.batch_size * math.prod(self.shape))

    def rows(self, memory: Any, slot: int) -> Int64[np.ndarray, "b 3"]:
        """Return the rows of a slot."""
        count = self.batch_size * len(Row._fields)
        return np.frombuffer(memory, np.int64, count, slot * self.slot_bytes).reshape(self.batch_size, -1)

    def images(self, memory: Any, slot: int) -> UInt8[np.ndarray, "b ..."]:
        """Return the images of a slot."""
        count, start = self.batch_size * math.prod(self.shape), slot * self.slot_bytes + self.header_bytes
        return np.frombuffer(memory, np.uint8, count, start).reshape(self.batch_size, *self.shape)


def _round_up(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES
