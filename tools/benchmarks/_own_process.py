"""Runs a benchmark in a process of its own: how memory lies there, and what it keeps, is then its own too."""

import json
import os
import pathlib
import subprocess
import sys


def measured_alone(file: str, **environment: str) -> dict:
    """What the benchmark's file prints as JSON when it is run as a program with these variables set besides."""
    tools = pathlib.Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tools.parent, tools)))
    done = subprocess.run(
        [sys.executable, file], env={**os.environ, **environment, "PYTHONPATH": path}, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)
