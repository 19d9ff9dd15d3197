"""A program that starts: a signal while libraries are imported ends it with a line, not with nothing."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os
from lvr_jax.command.start import start_program
start_program("slow", {status})
try:
    os.kill(os.getpid(), {number})
    import json.tool            # any Python code: the handler runs between two steps of it
except BaseException:
    print("a library swallowed it")
print("went on")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("status", ["lambda number: 1", "lambda number: 128 + number"])
def test_a_signal_before_the_program_is_ready_is_a_line_and_a_status(number, status):
    code = PROGRAM.format(number=int(number), status=status)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    said = f"slow: stopped by {number.name}; the same command goes on from here\n"
    assert (done.returncode, done.stdout, done.stderr) == (eval(status)(number), "", said)


def test_a_started_program_looks_for_garbage_less_often_and_still_does():
    code = """
import gc
from lvr_jax.command.start import start_program
before = gc.get_threshold()
start_program("slow")
print(gc.isenabled(), gc.get_threshold()[0] > before[0], gc.get_threshold()[1:] == before[1:])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3, done.stderr
