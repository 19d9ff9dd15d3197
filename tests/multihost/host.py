"""Runs a program as one host of several that compile together: `python host.py PROGRAM ARGUMENTS`.

JAX writes what it compiled from process 0 alone, and knows a CPU's program again only on the device that it was
compiled for: the other hosts of a test would compile theirs anew in every run, which takes longer than all that they do
with them. What several hosts run together is compiled by the first, and sent to the others.
"""

import os
import runpy
import sys
from unittest import mock

import jax
from jax._src import cache_key, compiler, distributed

write = compiler._cache_write


def write_from_any_process(*arguments, **named) -> None:
    with mock.patch.object(distributed.global_state, "process_id", 0):
        write(*arguments, **named)


def compile_together() -> None:
    """Has every process write what it compiles, under a key without its device, and read what another one wrote."""
    compiler._cache_write = write_from_any_process
    hash_options = cache_key._hash_serialized_compile_options
    cache_key._hash_serialized_compile_options = lambda *given, **_: hash_options(*given, strip_device_assignment=True)
    cache_key._hash_accelerator_config = cache_key._hash_devices
    jax.config.update("jax_share_binary_between_hosts", True)


if __name__ == "__main__":
    compile_together()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
