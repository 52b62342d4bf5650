"""A crash-safe store of feature arrays.

A store is a folder. `meta.json`, written first, says what the rows are and what they were made from. Shard 3 of
array NAME is `NAME.00003.npy`; `00003.json`, written after the arrays of that shard, holds their sizes and
checksums. Every file is renamed into place whole, so a killed writer leaves a store that lacks shards, and
never one with wrong rows.
"""

import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, Num
from rich.progress import track

from tljax import plain, rundir
from tljax.features.shards import MappedFiles, MappedRows, checksum, encode, row_bytes

META = "meta.json"
# Mapped pages count as memory of the process: a store larger than this gives them back after each use.
RESIDENT_BYTES = 2**30


class FeatureStore:
    """Arrays in a folder, all with the same number of rows; `open_store` and `open_for_writing` make it.

    A class because it keeps shards mapped into memory. The checksum of a shard is compared when it is first read.

    Attributes:
        ingredients: plain values that say what the rows were made from.
        num_rows: of every array.
        rows_per_batch: rows that the writer computes together.
        rows_per_shard: a whole number of batches; the last shard may be shorter.
        arrays: shape and dtype of one row of each array.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        meta = rundir.read_json(self.directory / META)
        self.ingredients: dict[str, Any] = meta["ingredients"]
        self.num_rows: int = meta["num_rows"]
        self.rows_per_batch: int = meta["rows_per_batch"]
        self.rows_per_shard: int = meta["rows_per_shard"]
        self.arrays = {
            name: jax.ShapeDtypeStruct(tuple(row["shape"]), jnp.dtype(row["dtype"]))
            for name, row in meta["arrays"].items()
        }
        self._mapped = MappedFiles()
        self.look_again()
        self._num_missing = len(self._problems)

    @property
    def num_shards(self) -> int:
        """Number of shards of each array."""
        return math.ceil(self.num_rows / self.rows_per_shard)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays together."""
        return self.num_rows * sum(row_bytes(row) for row in self.arrays.values())

    @property
    def is_complete(self) -> bool:
        """Whether every shard was there, whole, when the store was opened, or has been written since."""
        return not self._problems

    @property
    def share_reused(self) -> float:
        """Share of the shards that were there when the store was opened."""
        return 1 - self._num_missing / self.num_shards

    def look_again(self) -> None:
        """See which shards are there, and whole, now that others may have written some."""
        found = {shard: self._problem(shard) for shard in range(self.num_shards)}
        self._problems = {shard: problem for shard, problem in found.items() if problem is not None}

    def missing_shards(self) -> list[int]:
        """List the shards that are not there or not whole, for the writer to make."""
        return sorted(self._problems)

    def shard_rows(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        return min(self.rows_per_shard, self.num_rows - shard * self.rows_per_shard)

    def rows(self, name: str, indices: Integer[np.ndarray, " b"]) -> Num[np.ndarray, "b ..."]:
        """Gather rows of one array from disk.

        Raises:
            ValueError: the store is incomplete or damaged, or has no array of that name.
            IndexError: an index is outside of the rows.
        """
        row = self._readable(name)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(
                f"rows {indices.min()} to {indices.max()} asked of {self.directory}, which has 0 to {self.num_rows - 1}"
            )
        out = np.empty((len(indices), *row.shape), row.dtype)
        shards, offsets = np.divmod(indices, self.rows_per_shard)
        # Such rows are not in memory, and one after the other each would wait for the disk.
        if self.num_bytes > memory_bytes():
            for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True):
                self._map(name, shard).read_ahead(offset)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            mapped = self._map(name, shard)
            out[chosen] = mapped.values[offsets[chosen]]
            if self.num_bytes > RESIDENT_BYTES:
                mapped.forget()
        return out

    def read(self, name: str) -> Num[np.ndarray, "n ..."]:
        """Read a whole array into memory.

        Raises:
            ValueError: the store is incomplete or damaged, or has no array of that name.
        """
        row = self._readable(name)
        out = np.empty((self.num_rows, *row.shape), row.dtype)
        for shard, values in enumerate(self.shards(name)):
            first = shard * self.rows_per_shard
            out[first : first + self.rows_per_shard] = values
        return out

    def shards(self, name: str) -> Iterator[Num[np.ndarray, "n ..."]]:
        """Yield the rows of an array a shard at a time; a shard is of use until the next one comes.

        Raises:
            ValueError: as `read`.
        """
        self._readable(name)
        for shard in range(self.num_shards):
            mapped = self._map(name, shard)
            yield mapped.values
            mapped.forget()

    def write(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard of every array, cast to the dtype of the store.

        Raises:
            ValueError: a value is not finite, or too large for the dtype of the store; nothing is written.
            OSError: the disk is full; the store is as it was, without this shard.
        """
        assert arrays.keys() == self.arrays.keys(), f"got {sorted(arrays)}, wanted {sorted(self.arrays)}"
        contents = {}
        for name, row in self.arrays.items():
            assert arrays[name].shape == (self.shard_rows(shard), *row.shape), f"{name} is {arrays[name].shape}"
            contents[name] = encode(arrays[name], row.dtype, f"{name!r} in shard {shard} of {self.directory}")
        # First, so that no checksum stands beside an array that it was not made from.
        self._sidecar(shard).unlink(missing_ok=True)
        for name, content in contents.items():
            rundir.write_bytes(self._file(name, shard), content)
        sums = {name: {"bytes": len(content), "crc32": zlib.crc32(content)} for name, content in contents.items()}
        rundir.write_json(self._sidecar(shard), sums)
        for name in contents:
            self._mapped.replaced(self._file(name, shard))
        self._problems.pop(shard, None)

    def verify(self) -> list[str]:
        """Read everything and return the names of the files that do not hold what was written.

        To repair the store, delete those files and extract again.

        Raises:
            ValueError: the store is incomplete.
        """
        self._check_complete()
        damaged = []
        for shard in track(range(self.num_shards), f"verifying {self.directory.name}", transient=True):
            for name, recorded in rundir.read_json(self._sidecar(shard)).items():
                path = self._file(name, shard)
                if checksum(path) != recorded["crc32"]:
                    damaged.append(path.name)
        return damaged

    def _file(self, name: str, shard: int) -> Path:
        return self.directory / f"{name}.{shard:05d}.npy"

    def _sidecar(self, shard: int) -> Path:
        return self.directory / f"{shard:05d}.json"

    def _map(self, name: str, shard: int) -> MappedRows:
        return self._mapped.open(
            self._file(name, shard),
            self.arrays[name],
            self.shard_rows(shard),
            lambda: rundir.read_json(self._sidecar(shard))[name]["crc32"],
        )

    def _problem(self, shard: int) -> str | None:
        """Say what keeps a shard from being read, as far as sizes tell."""
        if not self._sidecar(shard).exists():
            return " ".join(self._file(name, shard).name for name in self.arrays) + " not finished"
        for name, recorded in rundir.read_json(self._sidecar(shard)).items():
            path = self._file(name, shard)
            if not path.exists():
                return f"{path.name} missing"
            size = path.stat().st_size
            if size != recorded["bytes"]:
                return f"{path.name} of {size} bytes, wanted {recorded['bytes']}"
        return None

    def _readable(self, name: str) -> jax.ShapeDtypeStruct:
        if name not in self.arrays:
            raise ValueError(f"feature store {self.directory} has no array {name!r}; it has {', '.join(self.arrays)}")
        self._check_complete()
        return self.arrays[name]

    def _check_complete(self) -> None:
        if self._problems:
            raise ValueError(
                f"feature store {self.directory} is incomplete, {len(self._problems)} of {self.num_shards} shards are "
                f"not whole: {self._problems[min(self._problems)]}; extract again, which makes these shards only"
            )


def open_store(directory: str | os.PathLike, ingredients: Mapping[str, Any] | None = None) -> FeatureStore:
    """Open a store, complete or not.

    Args:
        directory: of the store.
        ingredients: what its rows must have been made from; None takes any.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it was made from something else; the message lists the differences.
    """
    if not (Path(directory) / META).exists():
        raise FileNotFoundError(f"no feature store in {directory}: it has no {META}; extract first")
    store = FeatureStore(directory)
    wanted = store.ingredients if ingredients is None else plain.as_read(ingredients)
    problems = plain.differences(store.ingredients, wanted)
    if problems:
        raise ValueError(
            f"feature store {directory} was made from something else; use another folder, or remove this one:\n  "
            + "\n  ".join(problems)
        )
    return store


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
