"""What a benchmark says of the machine that it ran on."""

import subprocess
import sys
import time

from benchmarks._load import watched


def test_a_machine_on_which_others_work_is_not_called_quiet():
    """A process that goes on after the block is somebody else's; one that ended within it is the benchmark's own."""
    spin = "import time; end = time.time() + {}\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", spin.format(60)])
    try:
        with watched() as load:
            time.sleep(2)
    finally:
        other.kill()
        other.wait()
    assert load["processors_of_others"] > 0.1 and not load["quiet"]


def test_without_the_kernels_count_nothing_is_called_quiet(monkeypatch):
    monkeypatch.setattr("benchmarks._load._busy", lambda: None)
    with watched() as load:
        pass
    assert load["processors_of_others"] is None and not load["quiet"]
