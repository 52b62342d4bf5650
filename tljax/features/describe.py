"""What a feature store is, in words."""

import math

from tljax.features.shards import row_bytes
from tljax.features.store import FeatureStore


def describe_store(store: FeatureStore) -> str:
    """Return what the rows of a store are, what they were made from, and whether they are all there; reads none."""
    made = store.ingredients
    lines = [
        f"{store.directory}",
        f"rows      {store.num_rows:,} in {store.num_shards} shards of {store.rows_per_shard:,}, "
        f"{_size(store.num_bytes)}",
    ]
    width = max(map(len, store.arrays))
    for name, row in store.arrays.items():
        shape = " x ".join(map(str, row.shape))
        numbers = f"{math.prod(row.shape):,} numbers, {_size(store.num_rows * row_bytes(row))}"
        lines.append(f"  {name:<{width}}  {shape} {row.dtype.name}: {numbers}")
    lines.append(f"made from {_words(made)}")
    missing = store.missing_shards()
    state = "complete" if store.is_complete else f"{len(missing)} shards are not there or not whole: {missing[:10]}"
    return "\n".join([*lines, f"state     {state}"])


def _words(made: dict) -> str:
    """Write nested ingredients a line each; lists and hashes on one."""
    lines = []
    for name, value in sorted(made.items()):
        if isinstance(value, dict):
            inside = ", ".join(f"{key} {item}" for key, item in value.items())
            lines.append(f"{name}: {inside}")
        else:
            lines.append(f"{name}: {value}")
    return "\n          ".join(lines)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
