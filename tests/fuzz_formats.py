"""Files of weights, damaged in ways that are functions of a seed, and what a reader may do with them.

python -m tests.fuzz_formats FOLDER COUNT    # damages each format COUNT times; uses an empty folder
"""

import io
import json
import resource
import shutil
import signal
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
from flax import serialization
from safetensors.numpy import save

from tests.damage import damage, damage_header, damage_member
from tests.golden import synthetic
from tljax.weights.formats import weight_file
from tljax.weights.read import read_checkpoint

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {
    "conv/kernel": (3, 3, 4, 8),
    "conv/bias": (8,),
    "norm/scale": (8,),
    "head/linear/kernel": (16, 24),
    "head/linear/bias": (24,),
}
TIMEOUT_S = 20.0
# Beside twice the file: the state of zlib takes 45 kB, the buffer of an open file 8 kB, and what says where an array
# lies 1 kB.
FREE_BYTES = 128 << 10
# The library of HDF5 allocates where tracemalloc does not look.
HDF5_RESIDENT_BYTES = 32 << 20


def arrays() -> dict[str, np.ndarray]:
    """Return the arrays of the files that are made here."""
    made = synthetic.arrays(SHAPES)
    return made | {"norm/low": made["norm/scale"].astype(ml_dtypes.bfloat16), "step": np.array(3, np.int64)}


def originals(folder: Path) -> dict[str, bytes]:
    """Return a whole file in each format, by name."""
    nested = {}
    for key, value in arrays().items():
        *groups, name = key.split("/")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    npz, packed = io.BytesIO(), io.BytesIO()
    np.savez(npz, allow_pickle=False, **arrays())
    np.savez_compressed(packed, allow_pickle=False, **arrays())
    with h5py.File(folder / "made.h5", "w") as file:
        for key, value in synthetic.arrays(SHAPES).items():
            file.create_dataset(f"model_weights/{key}", data=value, compression="gzip" if value.ndim == 4 else None)
    shutil.copy(GOLDEN / "torch_onnx_new.onnx.data", folder)
    golden = ("torch_zip.pth", "torch_legacy.pth", "torch_protocol4.bin", "torch_onnx_old.onnx", "torch_onnx_new.onnx")
    return {
        "model.safetensors": save({**arrays()}, metadata={"format": "np"}),
        "model.npz": npz.getvalue(),
        "packed.npz": packed.getvalue(),
        "model.msgpack": serialization.msgpack_serialize(nested),
        "model.h5": (folder / "made.h5").read_bytes(),
        **{name: (GOLDEN / name).read_bytes() for name in golden},
    }


def variants(name: str, data: bytes, count: int) -> list[bytes]:
    """Return `count` damaged forms of a file; the first are the emptiest."""
    ways: list[Callable[[np.random.Generator, bytes], bytes]] = [damage]
    if data.startswith(b"PK"):
        ways.append(damage_member)
    if name.endswith(".safetensors"):
        ways.append(damage_header)
    cuts = [data[:size] for size in (0, 1, 7, 8, 9, 64, len(data) - 1)]
    made = [ways[seed % len(ways)](np.random.default_rng([seed, len(data)]), data) for seed in range(count - len(cuts))]
    return cuts + made


@dataclass(frozen=True)
class Outcome:
    """What became of a file: how many arrays were read, the error if any, and the most that was allocated."""

    arrays: int
    error: str
    peak_bytes: int


def examine(path: Path) -> Outcome:
    """Open a file and read every array, under the rules for damaged files.

    Raises:
        AssertionError: an error without file or key, an error of another kind, or an array that is not as announced.
        TimeoutError: it took longer than `TIMEOUT_S`.
    """
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    with time_limit(path):
        count, error = _read_all(path)
    return Outcome(count, error, tracemalloc.get_traced_memory()[1] - start)


@contextmanager
def time_limit(path: Path) -> Iterator[None]:
    """Raise TimeoutError when what is inside takes longer than `TIMEOUT_S`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{path} took more than {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read_all(path: Path) -> tuple[int, str]:
    try:
        checkpoint = read_checkpoint(path)
    except (ValueError, FileNotFoundError) as error:
        return 0, _message(error, path.name)
    failed = ""
    for key, stored in checkpoint.arrays.items():
        try:
            array = stored.read()
        except (ValueError, FileNotFoundError) as error:
            failed = _message(error, path.name, repr(key))
            continue
        assert array.shape == stored.shape, key
        assert array.dtype == stored.dtype, key
    return len(checkpoint.arrays), failed


def _message(error: Exception, *wanted: str) -> str:
    assert all(text in str(error) for text in wanted), f"{wanted} not in {error}"
    return f"{type(error).__name__}: {error}"


def main(folder: Path, count: int) -> None:
    """Damage each format `count` times; print how often that was found, and the most that was allocated."""
    warnings.simplefilter("error")
    # Memory for large arrays comes from where tracemalloc does not look; here all of it is to be seen.
    weight_file._MIN_MAPPED_BYTES = sys.maxsize
    found = originals(folder)
    tracemalloc.start()
    for name, data in found.items():
        path, resident = folder / name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path.write_bytes(data)
        whole = examine(path)
        assert not whole.error, whole
        errors, excess = 0, 0
        for index, changed in enumerate(variants(name, data, count)):
            path.write_bytes(changed)
            outcome = examine(path)
            assert outcome.peak_bytes <= 2 * len(changed) + FREE_BYTES, (name, index, outcome)
            errors += bool(outcome.error)
            excess = max(excess, outcome.peak_bytes - 2 * len(changed))
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
        assert not name.endswith(".h5") or grown <= HDF5_RESIDENT_BYTES, grown
        print(json.dumps({"name": name, "files": count, "errors": errors, "excess_bytes": excess}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
