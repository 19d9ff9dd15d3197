"""The converter as a program does what it says, with one line and the right exit status when it cannot."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "tools"))

import convert  # noqa: E402


@pytest.fixture
def hf(tmp_path):
    """A golden checkpoint with its tokenizer."""
    shutil.copytree(GOLDEN / "checkpoints" / "tiny_tied", tmp_path / "hf")
    shutil.copy(GOLDEN / "checkpoints" / "tokenizer.json", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """fsync is a promise about power loss, which no test here can see."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def same_signal_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output, and the last line of standard error."""
    capsys.readouterr()
    status = convert.main([str(argument) for argument in arguments])
    out, error = capsys.readouterr()
    return status, out, (error.strip().splitlines() or [""])[-1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_the_commands_of_the_help_text_work(tmp_path, hf):
    for arguments in (["to-flax", "hf", "flax", "--verify"], ["to-hf", "flax", "again"]):
        command = [sys.executable, ROOT / "tools" / "convert.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "again: 104 tensors\n"
    assert files_of(hf) == files_of(tmp_path / "again")


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        convert.main(["to-flax", "--help"])
    assert end.value.code == 0 and "python tools/convert.py to-flax" in capsys.readouterr().out


def test_what_does_not_travel_is_said(tmp_path, hf, capsys):
    (hf / "pytorch_model.bin").write_text("old")
    (hf / "checkpoint-500").mkdir()
    (hf / "training_args.bin").write_text("args")
    assert convert.main(["to-flax", str(hf), str(tmp_path / "flax")]) == 0
    assert "left behind: checkpoint-500, pytorch_model.bin" in capsys.readouterr().err
    assert names(tmp_path / "flax" / "hf") == ["config.json", "tokenizer.json", "training_args.bin"]


def test_bad_input_is_one_line_and_status_2(tmp_path, hf, capsys):
    status, _, line = run(capsys, "to-flax", tmp_path / "nowhere", tmp_path / "flax")
    assert (status, line) == (2, f"convert: {tmp_path / 'nowhere'}: no such folder")
    assert run(capsys, "to-flax", hf, tmp_path / "flax")[0] == 0
    status, _, line = run(capsys, "to-flax", hf, tmp_path / "flax")
    assert status == 2 and "flax exists" in line
    assert run(capsys, "to-flax", hf, tmp_path / "flax", "--overwrite")[0] == 0
    (tmp_path / "flax" / "lvr_jax.json").unlink()
    status, _, line = run(capsys, "to-hf", tmp_path / "flax", tmp_path / "again")
    assert status == 2 and "half-written" in line
    sizes = [["to-hf", "a", "b", "--shard-gb", size] for size in ("0", "nan", "inf", "1e300")]
    for arguments in (["to-flax"], ["to-hf", "a", "b", "--dtype", "int8"], *sizes):
        with pytest.raises(SystemExit) as end:
            convert.main(arguments)
        assert end.value.code == 2
    assert names(tmp_path) == ["flax", "hf"]


def test_an_output_that_cannot_be_made_is_one_line_and_status_1(tmp_path, hf, capsys):
    (tmp_path / "file").write_text("")
    status, _, line = run(capsys, "to-flax", hf, tmp_path / "file" / "flax")
    assert status == 1 and line.startswith("convert: ") and str(tmp_path / "file") in line
    assert names(tmp_path) == ["file", "hf"]


@pytest.mark.parametrize("field, token", [("lvr_start_id", "<|lvr_start|>"), ("image_token_id", "<|image_pad|>")])
def test_ids_that_disagree_with_the_tokenizer_are_refused(tmp_path, hf, capsys, field, token):
    assert run(capsys, "to-flax", hf, tmp_path / "flax")[0] == 0
    for folder, arguments in (
        (hf, ("to-flax", hf, tmp_path / "new")),
        (tmp_path / "flax" / "hf", ("to-hf", tmp_path / "flax", tmp_path / "new")),
    ):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, field: 7}))
        status, _, line = run(capsys, *arguments)
        assert status == 2 and f"{field} is 7" in line and token in line and str(folder / "config.json") in line
    assert names(tmp_path) == ["flax", "hf"]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path, hf, capsys):
    tokenizer = json.loads((hf / "tokenizer.json").read_text())
    last = dict(tokenizer["added_tokens"][-1])
    tokenizer["added_tokens"] += [{**last, "id": 405 + i, "content": f"<|more_{i}|>"} for i in range(200)]
    (hf / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, _, line = run(capsys, "to-flax", hf, tmp_path / "flax")
    assert status == 2 and "vocab_size is 512" in line and "605 entries" in line
    assert names(tmp_path) == ["hf"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("piece", [1, 50, 150])
def test_a_signal_ends_the_run_and_leaves_nothing(tmp_path, hf, capsys, monkeypatch, number, piece):
    update, count = convert.tqdm.update, [0]

    def signal_once(bar, n=1):
        count[0] += 1
        if count[0] == piece:
            os.kill(os.getpid(), number)
        return update(bar, n)

    monkeypatch.setattr(convert.tqdm, "update", signal_once)
    status, _, line = run(capsys, "to-flax", hf, tmp_path / "flax", "--verify")
    assert (status, line) == (1, f"convert: stopped by {signal.Signals(number).name}; nothing was kept")
    assert names(tmp_path) == ["hf"]


def test_a_changed_type_is_written_and_said_in_config(tmp_path, hf, capsys):
    assert run(capsys, "to-flax", hf, tmp_path / "flax", "--dtype", "bfloat16", "--verify")[0] == 0
    status, out, _ = run(capsys, "to-hf", tmp_path / "flax", tmp_path / "again", "--shard-gb", "0.0001")
    assert status == 0 and out == f"{tmp_path / 'again'}: 104 tensors\n"
    assert json.loads((tmp_path / "again" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 2
