"""Start the processes of one run on this machine, each with devices of its own, and see how they end."""

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

DEVICES_EACH = 4
# Beyond this they hang.
TIMEOUT_S = 150


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended."""

    status: int
    output: str


class Processes:
    """Processes that are running; a context manager, because none may be left behind."""

    def __init__(self, commands: list[list[str]], folder: Path, devices_each: int = DEVICES_EACH):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices_each),
            # Not those of the tests, which force a number of devices.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_NUMPY_DTYPE_PROMOTION": "standard",
        }
        self.logs = [folder / f"process_{number}.log" for number in range(len(commands))]
        self.running = []
        for command, log in zip(commands, self.logs, strict=True):
            with open(log, "wb") as file:
                self.running.append(
                    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=_ROOT)
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def signal(self, number: int, what: signal.Signals) -> None:
        self.running[number].send_signal(what)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait until something holds while all processes run."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            for process, log in zip(self.running, self.logs, strict=True):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
                    raise AssertionError(f"ended before its time: {log.read_text(errors='replace')}")

    def join(self, timeout_s: float = TIMEOUT_S) -> list[Ended]:
        """Wait for all; a process that is still there is an error."""
        for process in self.running:
            process.wait(timeout_s)
        return [
            Ended(status=process.returncode, output=log.read_text(errors="replace"))
            for process, log in zip(self.running, self.logs, strict=True)
        ]


_ROOT = Path(__file__).parent.parent


def start_cli(
    arguments: list[str],
    folder: Path,
    num_processes: int,
    devices_each: int = DEVICES_EACH,
    *,
    limits: Mapping[int, str] | None = None,
) -> Processes:
    """Start one `tljax` command as several processes.

    Args:
        arguments: of the command.
        folder: for their logs.
        num_processes: how many.
        devices_each: of each process.
        limits: by number of the process, arguments of `ulimit` that it runs under.
    """
    command = [sys.executable, "-m", "tljax.cli", *arguments]
    if num_processes > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={num_processes}"]
        commands = [[*command, f"--process_id={number}"] for number in range(num_processes)]
    else:
        commands = [command]
    for number, limit in (limits or {}).items():
        # Through a pipe: the log is a file too.
        commands[number] = [
            "bash",
            "-c",
            f'set -o pipefail; (ulimit {limit}; exec "$@") 2>&1 | cat',
            "bash",
            *commands[number],
        ]
    return Processes(commands, folder, devices_each)


def start_job(job: str, arguments: list[str], folder: Path, num_processes: int) -> Processes:
    """Start a function "module:name" of this folder in several processes, which have joined when it is called."""
    address = f"127.0.0.1:{free_port()}"
    return Processes(
        [
            [sys.executable, "-m", "tests.several", address, str(num_processes), str(number), job, *arguments]
            for number in range(num_processes)
        ],
        folder,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main(address: str, num_processes: str, process_id: str, job: str, *arguments: str) -> None:
    from tljax import processes
    from tljax.process_groups import Group

    processes.join(Group(coordinator=address, num_processes=int(num_processes), process_id=int(process_id)))
    module, name = job.split(":")
    getattr(importlib.import_module(module), name)(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
