"""Runs a program as one host of several that compile together: `python host.py PROGRAM ARGUMENTS`.

JAX writes what it compiled from process 0 alone, and on CPUs knows a program again only on the device that it was
compiled for. The other hosts of a test would compile theirs anew in every run, which takes longer than all that they do
with them. What several hosts run together is compiled by one, and the others wait for it.
"""

import functools
import os
import runpy
import sys
from unittest import mock

from jax._src import cache_key, compiler, distributed

write = compiler._cache_write


def write_from_any_process(*arguments, **named) -> None:
    with mock.patch.object(distributed.global_state, "process_id", 0):
        write(*arguments, **named)


def compile_together() -> None:
    compiler._cache_write = write_from_any_process
    hash_options = cache_key._hash_serialized_compile_options
    cache_key._hash_serialized_compile_options = functools.wraps(hash_options)(
        lambda hashed, options, strip_device_assignment: hash_options(hashed, options, strip_device_assignment=True))
    cache_key._hash_accelerator_config = cache_key._hash_devices


if __name__ == "__main__":
    compile_together()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
