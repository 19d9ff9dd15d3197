"""An evaluation of the shipped checkpoint is the same however it is run: batch, devices, killed and gone on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import quick

from lvr_jax.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def start(place: Path, output: Path, rows: int, devices: int = 1) -> subprocess.Popen:
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.flags(devices),
    }
    command = [
        sys.executable, ROOT / "tools/evaluate.py", "--checkpoint", ROOT / "lvr_jax/assets/tiny", "--system", "none",
        "--benchmark", "digit_search", f"--benchmark.size={ITEMS}", "--benchmark.split=test",
        "--protocol.max_new_tokens=16", "--batch", rows, "--output", output,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def items(output: Path) -> list[tuple]:
    return [(i.id, i.reply, i.parsed, i.correct, i.latents_fed) for i in read_results(output).items]


@pytest.fixture(scope="module")
def three_rows(place):
    process = start(place, place / "three.jsonl", 3)
    assert process.wait(300) == 0, process.stderr.read()
    return place / "three.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("rows, devices", [(1, 1), (8, 1), (8, 8)])
def test_rows_and_devices_change_no_item(place, three_rows, rows, devices):
    output = place / f"{rows}-{devices}.jsonl"
    process = start(place, output, rows, devices)
    assert process.wait(300) == 0, process.stderr.read()
    assert items(output) == items(three_rows)
    assert sum(correct for *_, correct, _ in items(output)) > ITEMS / 2, "it knows its task"
