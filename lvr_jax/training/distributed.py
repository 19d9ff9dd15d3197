"""Initialises `jax.distributed` where a run has several processes, and exchanges small values between them."""

import glob
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
import jax
import numpy as np
from jax.experimental import multihost_utils

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# 1: JAX finds the other hosts by itself; 0: this process stays alone, whatever the machine belongs to.
SEVERAL_HOSTS = "JAX_DISTRIBUTED"
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


class DistributedError(ValueError):
    """Raised where the environment names a run of several processes, but not which of them this is."""


def hosts_of_slice(environment: Mapping[str, str] = os.environ) -> int:
    """Number of hosts of the slice that this TPU VM belongs to; 1 for any other machine.

    Only the metadata server knows it. It is not asked by a process that may not use TPUs.
    """
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not chips or "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
        return 1
    try:
        request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return len([end for end in answer.read().decode().split(",") if end.strip()]) or 1
    except (urllib.error.URLError, OSError):        # chips without a metadata server: a machine of one's own
        return 1


def initialize(
    environment: Mapping[str, str] = os.environ, hosts: Callable[[Mapping[str, str]], int] = hosts_of_slice
) -> bool:
    """Joins the other processes of the run, if there are any; True if so. Before anything touches a device.

    By hand: JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process. On a TPU pod
    (JAX_DISTRIBUTED=1, several hosts in TPU_WORKER_HOSTNAMES or on the metadata server, or a multi-slice coordinator)
    and under SLURM, JAX finds out by itself. A single host starts nothing: `jax.distributed.initialize` would wait
    there for others (jax issue 22436). JAX_DISTRIBUTED=0 keeps a process of a pod alone. hosts: another way to count.
    """
    # gcsfs remembers what a folder held and does not see what another host writes (2026.10): no folder is remembered.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
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
    pod = pod or environment.get(SEVERAL_HOSTS) == "1" or int(environment.get("SLURM_NTASKS", 1)) > 1
    if environment.get(SEVERAL_HOSTS) != "0" and (pod or hosts(environment) > 1):
        jax.distributed.initialize()
        return True
    return False


def store() -> Any:
    """The client of the coordination service's key-value store, in a run of several processes."""
    from jax._src.distributed import global_state  # no public door to it (jax 0.10.2)

    return global_state.client


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
    """Tells whether the run was asked to stop: by SIGTERM, Ctrl-C or a preemption notice.

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

    @property
    def before_any_step(self) -> bool:
        """Whether a process that is alone was asked while it was still getting ready."""
        return self.number is not None

    def __call__(self, step: int) -> bool:
        """Asked after every step, by every process."""
        return multihost_utils.reached_preemption_sync_point(step) if self._agreed else self.number is not None

    def close(self) -> None:
        if not self._agreed:
            for number, handler in self._before.items():
                signal.signal(number, handler)
