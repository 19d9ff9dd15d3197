"""An evaluation of the shipped checkpoint is the same however it is run: batch, devices, killed and gone on."""

import os
from pathlib import Path

import pytest
import quick
from forked import Process

from lvr_jax.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def command(output: Path, rows: int) -> list[str]:
    return list(map(str, (
        "--checkpoint", ROOT / "lvr_jax/assets/tiny", "--system", "none", "--benchmark", "digit_search",
        f"--benchmark.size={ITEMS}", "--benchmark.split=test", "--protocol.max_new_tokens=16", "--batch", rows,
        "--output", output,
    )))  # fmt: skip


def items(output: Path) -> list[tuple]:
    return [(i.id, i.reply, i.parsed, i.correct, i.latents_fed) for i in read_results(output).items]


@pytest.fixture(scope="module")
def three_rows(place, warm):
    status, said = warm("evaluate", *command(place / "three.jsonl", 3))
    assert status == 0, said
    return place / "three.jsonl"


def assert_same(output: Path, expected: Path) -> None:
    assert items(output) == items(expected)
    assert sum(correct for *_, correct, _ in items(output)) > ITEMS / 2, "it knows its task"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8])
def test_rows_change_no_item(place, three_rows, warm, rows):
    status, said = warm("evaluate", *command(place / f"{rows}.jsonl", rows))
    assert status == 0, said
    assert_same(place / f"{rows}.jsonl", three_rows)


@pytest.mark.slow
def test_devices_change_no_item(place, three_rows):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.flags(8)}
    process = Process([ROOT / "tools/evaluate.py", *command(place / "eight.jsonl", 8)], environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_same(place / "eight.jsonl", three_rows)
