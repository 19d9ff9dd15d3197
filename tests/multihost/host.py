"""Runs a program as one host of several that keeps the programs it compiles: `python host.py PROGRAM ARGUMENTS`.

JAX writes what it compiled from process 0 alone. The other hosts of a test would compile theirs anew in every run,
which takes longer than all that they do with them.
"""

import os
import runpy
import sys
from unittest import mock

from jax._src import compiler, distributed

write = compiler._cache_write


def write_from_any_process(*arguments, **named) -> None:
    with mock.patch.object(distributed.global_state, "process_id", 0):
        write(*arguments, **named)


if __name__ == "__main__":
    compiler._cache_write = write_from_any_process
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
