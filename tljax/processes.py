"""The processes of a run, on one machine or several: how they find each other, agree, and end together.

JAX's distributed runtime connects them. Where one ends, the others would wait for it: until a broken connection or a
missing heartbeat shows it to JAX, which aborts them. Here each process also says why it ends, and watches the others.
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tljax import plain
from tljax.process_groups import Group, found_processes

# Exit status of a process that has been interrupted and has lost nothing: run the same command again.
# One that no shell, SLURM or Python gives by itself.
REQUEUE = 85
FAILED = 2

BEAT_S = 2.0
# A process that has not been heard of for so long is taken for dead.
SILENCE_S = 20.0
# When JAX itself does the same, with a message of its own, and aborts.
_JAX_HEARTBEAT_S = 40
_JAX_SHUTDOWN_S = 60
_STOPPED, _ALIVE = "tljax/stopped/", "tljax/alive/"

log = logging.getLogger(__name__)


class Preempted(Exception):  # noqa: N818 (no error: nothing is lost)
    """The run was told to end, and has saved what it had: run it again, and it goes on from there."""


def join(group: Group | None = None) -> None:
    """Connect this process with the others of its run; call it before anything else of JAX.

    Does nothing where there are no others.

    Args:
        group: which processes belong together; None asks SLURM, Open MPI or the TPU pod.

    Raises:
        OSError: the others were not found.
    """
    if group is None and found_processes(os.environ) == 1:
        return
    given: dict[str, Any] = {}
    if group is not None:
        given = {"coordinator_address": group.coordinator, "num_processes": group.num_processes}
        given |= {"process_id": group.process_id, "cluster_detection_method": "deactivate"}
        if group.coordinator.startswith("127."):
            # Without it the coordinator listens on all interfaces.
            given["coordinator_bind_address"] = group.coordinator
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=_JAX_HEARTBEAT_S, shutdown_timeout_seconds=_JAX_SHUTDOWN_S
        )
    except RuntimeError as error:
        where = "" if group is None else f" at {group.coordinator}"
        raise OSError(
            f"the other processes were not found{where}: {str(error).splitlines()[0]}; see that all are started with "
            "the same coordinator and number, each with its own process_id, and that the port is free"
        ) from error
    log.info("process %d of %d, %d devices here", jax.process_index(), jax.process_count(), jax.local_device_count())
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(is_over,), name="tljax watches the other processes", daemon=True)
    watch.start()
    atexit.register(_part, watch, is_over)


def _part(watch: threading.Thread, is_over: threading.Event) -> None:
    """Wait for the others at the end, still watched, and then for the watch.

    A thread that comes back from JAX's runtime when Python has gone is ended in the middle of it, which aborts.
    """
    jax.distributed.shutdown()
    is_over.set()
    watch.join()


def are_several() -> bool:
    """Tell whether this process has others beside it; does not start the devices to find out."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Tell whether this process is the one that writes what a run has only one of."""
    return not are_several() or jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> Any:
    """Call a function in process 0 alone, and return what it gives, or raise what it raises, in all processes.

    Args:
        function: gives plain values, as JSON knows them, and raises a ValueError, an OSError or an ImportError where it
            fails.
    """
    if not are_several():
        return function()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": function()}
        except (ValueError, OSError, ImportError) as error:
            outcome = {"error": str(error), "kind": type(error).__name__}
            _broadcast(outcome)
            raise
    outcome = _broadcast(outcome)
    if "error" not in outcome:
        return outcome["value"]
    kinds = {kind.__name__: kind for kind in (FileNotFoundError, ImportError, OSError)}
    raise kinds.get(outcome["kind"], ValueError)(outcome["error"])


def wait_for_all(name: str) -> None:
    """Wait until all processes have come here.

    Args:
        name: of the place, another for each.
    """
    if are_several():
        multihost_utils.sync_global_devices(name)


def leave(message: str, status: int) -> None:
    """End this process at once, and tell the others why; returns where there are no others.

    Without this a process that fails would wait at its end for the others, and they for it in their next step.
    """
    if not are_several():
        return
    # Process 0, which would hand it on, may be what is gone.
    with contextlib.suppress(RuntimeError):
        text = json.dumps([status, message])
        _client().key_value_set(f"{_STOPPED}{jax.process_index()}", text, allow_overwrite=True)
    if is_first():
        # It holds what the others read the message from.
        time.sleep(3 * BEAT_S)
    _exit(status)


def _broadcast(value: dict[str, Any]) -> dict[str, Any]:
    """Return in all processes the value that process 0 gives."""
    text = json.dumps(value, default=plain.to_json).encode()
    size = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    data = np.zeros(int(size), np.uint8)
    if is_first():
        data[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(data)))


def _client() -> Any:
    # The store of names and values that all processes share has no public name in JAX.
    from jax._src import distributed

    return distributed.global_state.client


def _watch(is_over: threading.Event) -> None:
    """Say that this process is alive, and end it when another has ended or is silent.

    The first listens to all, the others to the first, so that a thousand of them do not all ask for a thousand beats.
    """
    client, me = _client(), jax.process_index()
    listened = _ALIVE if me == 0 else f"{_ALIVE}0/"
    heard: dict[str, tuple[str, float]] = {}
    for count in itertools.count():
        try:
            client.key_value_set(f"{_ALIVE}{me}/beat", str(count), allow_overwrite=True)
            stopped, alive = client.key_value_dir_get(_STOPPED), client.key_value_dir_get(listened)
        except RuntimeError:
            # Process 0 is gone or going. At the end of a run that is as it should be; in the middle JAX ends this one.
            return
        now = time.monotonic()
        heard |= {name: (beat, now) for name, beat in alive if name not in heard or heard[name][0] != beat}
        _end_with(stopped, me)
        silent = sorted(int(name.split("/")[-2]) for name, (_, since) in heard.items() if now - since > SILENCE_S)
        if silent:
            message = (
                f"process {silent[0]} has not been heard of for {SILENCE_S:.0f} s, so it has died: see its log. Run "
                "the same command again, and it goes on from the latest checkpoint"
            )
            _say(message)
            leave(message, FAILED)
        if is_over.wait(BEAT_S):
            return


def _end_with(stopped: list[tuple[str, str]], me: int) -> None:
    """End as another process did, if one has."""
    others = sorted((name, text) for name, text in stopped if int(name.rpartition("/")[2]) != me)
    if not others:
        return
    name, text = others[0]
    status, message = json.loads(text)
    _say(f"process {name.rpartition('/')[2]} has ended: {message}")
    if is_first():
        time.sleep(3 * BEAT_S)
    _exit(status)


def _say(message: str) -> None:
    print(f"tljax: process {jax.process_index()}: {message}", file=sys.stderr, flush=True)


def _exit(status: int) -> None:
    """End without the handlers of `atexit`, one of which waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
