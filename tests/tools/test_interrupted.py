"""Every program goes on to the undisturbed result, whenever it is killed, stopped or started twice.

One kill and one stop a program by default, at moments that are the same each time. LVR_JAX_MOMENTS=20 asks for so many
of each, drawn anew, and prints what happened (pytest -s).
"""

import importlib.util
import os
import random

import interrupted
import pytest
import two_layers

from lvr_jax.checkpoints import to_flax

TOTAL = int(os.environ.get("LVR_JAX_MOMENTS", 0))
NEEDS_GRADIO = [] if importlib.util.find_spec("gradio") else ["playground"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in interrupted.PROGRAMS if name not in NEEDS_GRADIO])
def test_a_program_that_is_killed_stopped_or_started_twice_ends_in_the_same_result(tmp_path, name):
    to_flax(interrupted.ROOT / interrupted.TINY_LVR, tmp_path / interrupted.SOURCE)
    two_layers.checkpoint(tmp_path / interrupted.QUICK)
    seed, moments = random.randrange(2**32) if TOTAL else 0, TOTAL or 1
    print(f"seed {seed}")
    tally = interrupted.survive(name, tmp_path, moments, seed)
    print(tally.line(name))
    assert tally.killed == tally.stopped == moments and tally.finished
