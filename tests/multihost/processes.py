"""Real processes joined by jax.distributed on one machine, as the hosts of a pod."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import quick

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(
    command: Sequence, count: int, *, devices: int = 1, each: Sequence[Sequence] = (), **environment
) -> list[subprocess.Popen]:
    """`count` processes of one run, each with that many devices; one process is not joined to anything.

    each: what is added to the command of each process
    """
    if count > 1 and command[0] != "-c":
        command = [Path(__file__).parent / "host.py", *command]
    shared = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment,
        # Margins over two hosts are held to 2e-4; without LLVM's passes they were 2.3e-4 apart.
        "XLA_FLAGS": quick.flags(devices, [quick.LEVEL]),
    }  # fmt: skip
    address = f"127.0.0.1:{free_port()}"
    joined = [{"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
              for index in range(count)] if count > 1 else [{}]  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *map(str, each[index] if each else ())], env={**shared, **own},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index, own in enumerate(joined)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Status, standard output and standard error of each; a process that hangs is killed and fails the test."""
    try:
        return [(out_err := process.communicate(timeout=timeout)) and (process.returncode, *out_err)
                for process in processes]  # fmt: skip
    finally:
        for process in processes:
            process.kill()


def last_line(error: str) -> str:
    return (error.strip().splitlines() or [""])[-1]
