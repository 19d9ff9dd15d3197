"""A run that hangs ends, with the stacks of all its threads."""

import subprocess
import sys
import time

from lvr_jax.training.watchdog import FIRST, Watchdog

HANGS = """
import sys, time
from lvr_jax.training.watchdog import Watchdog

def waits_for_a_host_that_is_gone():
    time.sleep(60)

watchdog = Watchdog(sys.argv[1], 0.02)
watchdog.beat(7)
waits_for_a_host_that_is_gone()
"""


def test_a_run_that_hangs_ends_and_says_where(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (stacks,) = (tmp_path / "stacks").iterdir()
    assert "waits_for_a_host_that_is_gone" in stacks.read_text() and "process_0" in stacks.name
    assert f"minutes after step 7; the stacks of all threads are in {stacks}" in done.stderr.splitlines()[-1]


def test_steps_keep_it_quiet_and_the_first_may_take_longer(tmp_path):
    ended = []
    watchdog = Watchdog(tmp_path, 0.2 / 60, end=ended.append)
    time.sleep(0.2 * (1 + FIRST) / 2)
    for step in range(1, 10):
        watchdog.beat(step)
        time.sleep(0.05)
    watchdog.close()
    time.sleep(0.5)
    assert not ended and not (tmp_path / "stacks").exists()
