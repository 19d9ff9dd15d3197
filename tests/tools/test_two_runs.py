"""Two runs of a program on one output: the second is refused in one line and touches nothing."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvr_jax.files.lock import locked

ROOT = Path(__file__).parents[2]


@pytest.mark.slow       # five programs' imports
def test_no_program_runs_twice_in_one_place(tmp_path):
    """All at once: each is told before it reads a checkpoint."""
    commands = {
        "train": ["--config", "configs/lvr.py:tiny", "--workdir", "train"],
        "prism": ["--config", "configs/prism.py", "--config.checkpoint=none", "--workdir", "prism"],
        "reproduce": ["--workdir", "reproduce"],
        "inspect_data": ["--config", "configs/lvr.py:tiny", "--output", "inspect_data"],
        "evaluate": ["--checkpoint", "none", "--benchmark", "digit_search", "--output", "evaluate"],
    }
    places = {name: tmp_path / (f"{name}.parts" if name == "evaluate" else name) for name in commands}
    runs = {}
    with contextlib.ExitStack() as held:
        for place in places.values():
            place.mkdir()
            held.enter_context(locked(place))
        for name, (*arguments, place) in commands.items():
            command = [sys.executable, f"tools/{name}.py", *arguments, str(tmp_path / place)]
            runs[name] = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                                          env={**os.environ, "JAX_PLATFORMS": "cpu"})  # fmt: skip
        for name, run in runs.items():
            said = run.communicate(timeout=300)[1].splitlines()
            assert run.returncode == 1, said
            assert said[-1].startswith(f"{name}: {places[name]}: another run is writing there"), said
            assert not any(places[name].iterdir())
