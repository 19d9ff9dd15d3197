"""Is this process alone? Starts JAX's distributed runtime when the environment says so, and lets processes talk."""

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Set by tools/launch_tpu.sh on a TPU VM of several hosts: its metadata server knows them, its environment does not.
SEVERAL_HOSTS = "JAX_DISTRIBUTED"


class DistributedError(ValueError):
    """An environment that names a run of several processes, but not which one this is."""


def initialize(environment: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes of the run, if there are any; True if so. Before anything touches a device.

    By hand: JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process. On a TPU pod
    (JAX_DISTRIBUTED=1, several hosts in TPU_WORKER_HOSTNAMES, or a multi-slice coordinator) and under SLURM, JAX finds
    out by itself. A single host starts nothing: `jax.distributed.initialize` would wait there for others (jax issue
    22436).
    """
    if COORDINATOR in environment:
        try:
            count, index = int(environment[COUNT]), int(environment[INDEX])
        except (KeyError, ValueError) as error:
            raise DistributedError(
                f"{COORDINATOR} is set, so {COUNT} and {INDEX} must be whole numbers; they are "
                f"{environment.get(COUNT)!r} and {environment.get(INDEX)!r}"
            ) from error
        jax.distributed.initialize(environment[COORDINATOR], count, index)
        return True
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    pod = pod or environment.get(SEVERAL_HOSTS) == "1"
    if pod or int(environment.get("SLURM_NTASKS", 1)) > 1:
        jax.distributed.initialize()
        return True
    return False


def gather(value: Any) -> list[Any]:
    """One JSON-able value of each process -> those of all, in order of the processes; every process calls it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)]))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[: int(n)].tobytes()) for row, n in zip(rows, lengths.reshape(-1))]


class StopRequest:
    """Has somebody asked this run to end: SIGTERM, Ctrl-C, or the notice of a preemption?

    All processes must stop after the same step. In a run of several, JAX's coordination service takes the signal and
    agrees on the step; alone, the signal is remembered here. A second one ends the process at once.
    """

    def __init__(self):
        self.number: int | None = None
        self._agreed = jax.process_count() > 1
        if not self._agreed:
            self._before = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGINT)}

    def _remember(self, number, frame) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def __call__(self, step: int) -> bool:
        """Asked after every step, by every process."""
        return multihost_utils.reached_preemption_sync_point(step) if self._agreed else self.number is not None

    def close(self) -> None:
        if not self._agreed:
            for number, handler in self._before.items():
                signal.signal(number, handler)
