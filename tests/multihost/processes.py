"""Real processes joined by jax.distributed on one machine, as the hosts of a pod."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import quick
from forked import Process

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(
    command: Sequence, count: int, *, devices: int = 1, each: Sequence[Sequence] = (), **environment
) -> list[Process]:
    """`count` processes of one run, each with that many devices; one process is not joined to anything.

    each: what is added to the command of each process
    """
    if command[0] != "-c":
        command = [Path(__file__).parent / "host.py", *command]
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": quick.flags(devices),
              **environment}  # fmt: skip
    address = f"127.0.0.1:{free_port()}"
    joined = [{"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
              for index in range(count)] if count > 1 else [{}]  # fmt: skip
    return [Process([*command, *(each[index] if each else ())], {**shared, **own}) for index, own in enumerate(joined)]


def finish(processes: Sequence[Process], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Status, standard output and standard error of each; a process that hangs is killed and fails the test."""
    try:
        return [(out_err := process.communicate(timeout=timeout)) and (process.returncode, *out_err)
                for process in processes]  # fmt: skip
    finally:
        for process in processes:
            process.kill()


def last_line(error: str) -> str:
    return (error.strip().splitlines() or [""])[-1]
