"""The evaluation as a program does what it says, on one device and many, with one line when it cannot."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import quick
from forked import Process

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "multihost")]

from processes import free_port  # noqa: E402

import evaluate  # noqa: E402
from lvr_jax.checkpoints import to_flax  # noqa: E402
from lvr_jax.evaluation import generation  # noqa: E402
from lvr_jax.evaluation.results import read_results  # noqa: E402

SEARCH = ("--benchmark", "digit_search", "--benchmark.size=10", "--benchmark.kinds=('colour','position')")
SHORT = (*SEARCH, "--protocol.max_new_tokens=12", "--budget", "3")


@pytest.fixture(autouse=True)
def same_signal_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def checkpoint(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "checkpoints" / "tiny_tied_trained_lvr", folder)
    shutil.copy(GOLDEN / "checkpoints" / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("evaluate") / "hf")


@pytest.fixture(scope="module")
def first(hf):
    """The results that other runs are compared with, and what was printed."""
    assert evaluate.main(["--checkpoint", str(hf), *SHORT, "--output", str(hf.parent / "first.jsonl")]) == 0
    return read_results(hf.parent / "first.jsonl")


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output, and the last line of standard error."""
    capsys.readouterr()
    status = evaluate.main([str(argument) for argument in arguments])
    out, error = capsys.readouterr()
    return status, out, (error.strip().splitlines() or [""])[-1]


def verdicts(results) -> list[tuple]:
    return [(i.id, i.reply, i.parsed, i.correct, i.latents_fed) for i in results.items]


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0 and "python tools/evaluate.py --checkpoint" in capsys.readouterr().out


def test_a_run_prints_shares_with_intervals_and_says_where_the_items_are(hf, tmp_path, capsys):
    status, out, _ = run(capsys, "--checkpoint", hf, *SHORT, "--workdir", tmp_path / "new")
    assert status == 0
    results = read_results(tmp_path / "new" / "digit_search-clean.jsonl")
    right = sum(item.correct for item in results.items)
    assert re.search(rf"micro +all +{10 * right:.1f} %  \[\d+\.\d, \d+\.\d\] wilson, n = 10\n", out)
    assert "micro      position" in out and out.rstrip().endswith(results.path)
    assert results.header.protocol.steps.accuracy == 3 and results.header.details["latents"] == {"lvr": 3}
    assert results.header.details["system"] == "lvr", "config.json names its tokens"


@pytest.mark.parametrize("mesh, rows", [
    ("data=8", 8), pytest.param("data=2,fsdp=2,tensor=2", 4, marks=pytest.mark.slow),
])
def test_eight_devices_give_every_item_the_result_of_one(hf, first, tmp_path, mesh, rows):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.flags(8)}
    run = Process([ROOT / "tools" / "evaluate.py", "--checkpoint", hf, *SHORT, "--mesh", mesh, "--batch", 3,
                   "--programs", 1, "--output", tmp_path / "x.jsonl"], environment)  # fmt: skip
    _, error = run.communicate()
    assert run.returncode == 0, error
    assert f"1 program of {rows} rows" in error
    assert verdicts(read_results(tmp_path / "x.jsonl")) == verdicts(first)


def test_an_orbax_folder_gives_the_same_items_as_the_hugging_face_one(hf, first, tmp_path):
    to_flax(hf, tmp_path / "flax")
    arguments = ["--checkpoint", tmp_path / "flax", *SHORT, "--output", tmp_path / "x.jsonl"]
    assert evaluate.main(list(map(str, arguments))) == 0
    found = read_results(tmp_path / "x.jsonl")
    assert found.items == first.items and found.header.details == first.header.details


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(hf, first, tmp_path):
    code = ("import sys, jax; jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]));"
            f"sys.path.insert(0, {str(ROOT / 'tools')!r}); import evaluate; sys.exit(evaluate.main(sys.argv[3:]))")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    port = free_port()
    arguments = ["--checkpoint", hf, *SHORT, "--batch", "2", "--output", tmp_path / "x.jsonl"]
    runs = [Process(["-c", code, f"localhost:{port}", k, *arguments], environment) for k in range(2)]
    ends = [each.communicate(timeout=300) for each in runs]
    assert [each.returncode for each in runs] == [0, 0], ends
    assert "micro" in ends[0][0] and "micro" not in ends[1][0], "the first process alone reports"
    assert verdicts(read_results(tmp_path / "x.jsonl")) == verdicts(first)
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_compare_prints_the_paired_table_of_two_files(first, tmp_path, capsys):
    lines = Path(first.path).read_text().splitlines()
    flipped = json.loads(lines[1])
    flipped["correct"] = not flipped["correct"]
    (tmp_path / "b.jsonl").write_text("\n".join([lines[0], json.dumps(flipped), *lines[2:]]) + "\n")
    status, out, _ = run(capsys, "--compare", first.path, tmp_path / "b.jsonl")
    assert status == 0 and re.search(r"^all +10 ", out, re.MULTILINE) and "+10.0" in out
    status, _, line = run(capsys, "--compare", first.path, tmp_path / "c.jsonl")
    assert (status, line) == (2, f"evaluate: {tmp_path / 'c.jsonl'}: no such file, expected results of an evaluation"
                                 " (JSONL)")
    status, _, line = run(capsys, "--compare", first.path, tmp_path)
    assert status == 2 and line.startswith(f"evaluate: {tmp_path}: a folder, expected results")


def test_switches_reach_the_protocol(capsys):
    options = evaluate.parse(["--checkpoint", "x", "--benchmark", "mmvp", "--output", "y", "--protocol", "paper",
                              "--protocol.mmvp_order=lexicographic", "--protocol.repetition_penalty=1.1",
                              "--protocol.steps.probe=4", "--budget", "16"])
    chosen = evaluate.protocol_of(options)
    assert (chosen.mmvp_order, chosen.repetition_penalty, chosen.prompts) == ("lexicographic", 1.1, "prism")
    assert (chosen.steps.accuracy, chosen.steps.probe, chosen.staged_steps.accuracy) == (16, 4, 16)


def refusals(hf: Path, tmp: Path) -> dict[str, tuple[list, str]]:
    other = tmp / "other"
    return {
        "folder": (["--benchmark", "vstar", "--data", tmp / "no"], "vstar: .*no is not a folder, expected the downlo"),
        "no folder": (["--benchmark", "vstar"], "vstar: no folder given"),
        "index": (["--benchmark", "mmvp", "--data", tmp], "mmvp: .*"),
        "benchmark": (["--benchmark", "vstarr"], "no benchmark 'vstarr', expected one of vstar, mmvp"),
        "option": (["--benchmark", "digit_search", "--benchmark.sizes=3"], "digit_search: no option 'sizes'"),
        "setting": (["--benchmark", "digit_search", "--benchmark.size=0"], "digit_search: .*size = 0: expected at lea"),
        "protocol": ([*SEARCH, "--protocol", "dirty"], "no protocol 'dirty', expected one of paper, clean"),
        "switch": ([*SEARCH, "--protocol.penalty=2"], "protocol clean: no switch 'penalty'"),
        "steps": ([*SEARCH, "--protocol.steps=5", "--budget=2"], "protocol clean: steps is 5, expected steps.acc"),
        "list": ([*SEARCH, "--protocol.extraction=[]"], r"protocol clean.*: extraction is \[\], expected one of"),
        "budget": ([*SEARCH, "--protocol.steps.proof=2"], "protocol clean: no switch 'steps.proof'"),
        "value": ([*SEARCH, "--protocol.max_new_tokens=many"], ".*max_new_tokens is 'many', expected a whole number"),
        "system": ([*SEARCH, "--system", "lvrr"], "latent system 'lvrr' does not exist, expected one of lvr, "),
        "other system": ([*SEARCH, "--system", "monet"], "tokenizer .*: token .* of system 'monet' is missing"),
        "checkpoint": ([*SEARCH, "--checkpoint", tmp / "no"], ".*no: no such folder"),
        "tokenizer": ([*SEARCH, "--checkpoint", GOLDEN / "checkpoints" / "tiny_tied"], ".*: no tokenizer.json"),
        "ids": ([*SEARCH, "--checkpoint", other], ".*config.json: lvr_start_id is 7, but tokenizer .*lvr_start"),
        "mesh": ([*SEARCH, "--mesh", "data=3"], "mesh .* does not divide"),
        "mesh words": ([*SEARCH, "--mesh", "many"], "--mesh is 'many', expected AXIS=N"),
    }


@pytest.mark.parametrize("case", refusals(Path(), Path()))
def test_bad_input_is_one_line_and_status_2(hf, tmp_path, capsys, case):
    checkpoint(tmp_path / "other")
    config = json.loads((hf / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "lvr_start_id": 7}))
    arguments, said = refusals(hf, tmp_path)[case]
    capsys.readouterr()
    status = evaluate.main(["--checkpoint", str(hf), *map(str, arguments), "--output", str(tmp_path / "x.jsonl")])
    error = capsys.readouterr().err.splitlines()
    lines = [line for line in error if line.startswith("evaluate: ")]
    assert status == 2 and len(lines) == 1 and lines[0] == error[-1]
    assert re.match(f"evaluate: {said}", lines[0]), lines[0]
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("arguments", [
    [], ["--checkpoint", "x"], ["--checkpoint", "x", "--benchmark", "vstar"],
    ["--checkpoint", "x", "--benchmark", "vstar", "--output", "a", "--workdir", "b"],
    ["--checkpoint", "x", "--benchmark", "vstar", "--output", "a", "--batch", "0"],
    ["--checkpoint", "x", "--benchmark", "vstar", "--output", "a", "--protocols.x=1"],
])
def test_a_command_that_makes_no_sense_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(arguments)
    assert end.value.code == 2 and ": error: " in capsys.readouterr().err.splitlines()[-1]


def test_results_of_another_run_are_not_overwritten(hf, first, capsys):
    before = Path(first.path).read_bytes()
    status, _, line = run(capsys, "--checkpoint", hf, *SHORT, "--budget", "4", "--output", first.path)
    assert status == 2 and "holds another evaluation" in line and Path(first.path).read_bytes() == before


@pytest.mark.slow
def test_a_signal_ends_the_run_in_one_line_and_the_same_command_goes_on(hf, first, tmp_path, capsys, monkeypatch):
    arguments = ["--checkpoint", hf, *SHORT, "--batch", "2", "--output", tmp_path / "x.jsonl"]
    read, calls = generation.Generation.read, []

    def read_then_stop(self, *rest):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, *rest)

    monkeypatch.setattr(generation.Generation, "read", read_then_stop)
    status, _, line = run(capsys, *arguments)
    assert (status, line) == (1, "evaluate: stopped by SIGTERM; the same command goes on from here")
    assert run(capsys, *arguments)[0] == 0 and len(calls) == 3 + 2, "the batch under way was finished"
    assert verdicts(read_results(tmp_path / "x.jsonl")) == verdicts(first)


def test_an_output_that_cannot_be_written_is_one_line_and_status_1(hf, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, line = run(capsys, "--checkpoint", hf, *SHORT, "--output", tmp_path / "file" / "x.jsonl")
    assert status == 1 and line.startswith("evaluate: ") and str(tmp_path / "file") in line
