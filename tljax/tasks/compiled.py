"""Compiled programs on disk, so that a run need not compile what another has."""

import collections
import contextlib
import logging
import platform
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from tljax.plain import fingerprint

# What the programs of one kind of machine may take; the oldest go first.
LIMIT_BYTES = 4 * 10**9
_ENTRIES = "*-cache"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def keep_compiled(folder: Path | None, *, limit_bytes: int = LIMIT_BYTES) -> Iterator[None]:
    """Read compiled programs from a folder, and write there what has to be compiled, until the context is left.

    A cache that is configured already, by JAX_COMPILATION_CACHE_DIR or `jax.config`, is left as it is, and so is one
    that is turned off there. No run fails for its cache: JAX compiles what it cannot read, with a warning, and of
    several processes of a run the first alone writes.

    Args:
        folder: shared by all machines and versions, each of which has a folder of its own inside; None keeps nothing.
        limit_bytes: what may be left in that when the context is left.
    """
    config: Any = jax.config
    if folder is None or config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        yield
        return
    own = folder / machine_name()
    can_write = _can_write(own)
    if not own.is_dir():
        log.info("no compiled programs are kept: %s cannot be written", own)
        yield
        return
    # Of 50 programs before the first step, all but one or two take less than JAX's own bound of 1 s.
    least_s = 0.0 if can_write else float("inf")
    with _configured(str(own), least_s), count_events() as events:
        before = _entries(own)
        try:
            yield
        finally:
            if can_write:
                _tidy(own, len(before), events["cache_misses"], limit_bytes)


def machine_name() -> str:
    """Name all that a compiled program depends on beside what JAX hashes: it may hold instructions of one processor."""
    backend, machine = jax.default_backend(), platform.machine()
    return f"{backend}-{machine}-{fingerprint([jax.__version__, _processor_features()])[:12]}"


@contextlib.contextmanager
def count_events(thread: int | None = None) -> Iterator[collections.Counter[str]]:
    """Count what JAX does with its compilation cache, by the last word of its events: "cache_hits", "cache_misses".

    Args:
        thread: the identifier of the thread that is listened to; None for all.
    """
    counts: collections.Counter[str] = collections.Counter()

    def listen(event: str, **_: object) -> None:
        if thread in (None, threading.get_ident()):
            counts[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_listener(listen)


@contextlib.contextmanager
def _configured(folder: str, least_s: float) -> Iterator[None]:
    settings = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": least_s}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        # JAX asks once whether there is a cache, and remembers.
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _processor_features() -> str:
    """Return the instruction sets of the processor, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    # "flags" on x86, "Features" on ARM.
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _entries(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (time in ns, bytes, path) of every program, the oldest first."""
    found = []
    for path in folder.glob(_ENTRIES):
        # Another process may tidy up.
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    return sorted(found)


def _tidy(folder: Path, num_before: int, num_written: int, limit_bytes: int) -> None:
    """Make the folder smaller, or empty where it holds a program that cannot be read.

    JAX never writes over an entry, so that one which a killed process left half written would be compiled again for
    ever. Then fewer files are new than programs were written.
    """
    entries = _entries(folder)
    is_damaged = len(entries) - num_before < num_written
    if is_damaged:
        log.info("%s holds programs that cannot be read; emptied", folder)
    total = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if not is_damaged and total <= limit_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
