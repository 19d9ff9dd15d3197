"""Result files are read back as written, and two of them are compared item by item."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binom

from lvr_jax.evaluation.comparison import compare, mcnemar
from lvr_jax.evaluation.protocol import CLEAN, PAPER
from lvr_jax.evaluation.results import Header, Result, Results, read_results, write_results
from lvr_jax.evaluation.rows import BenchmarkError

HEADER = Header("vstar", "vstar", "runs/lvr", CLEAN, details={"seed": 0})


def results(verdicts, header=HEADER, category=None, group=None):
    items = tuple(Result(str(i), verdict == "1", letter="A", category=(category or ["x"] * len(verdicts))[i],
                         group=(group or [""] * len(verdicts))[i]) for i, verdict in enumerate(verdicts))
    return Results(f"{header.checkpoint}.jsonl", header, items)


def test_a_file_of_results_is_read_back_as_written(tmp_path):
    item = Result("0", True, prompt="Which?\n<image>", reply="<answer> Ä </answer>", parsed="A", letter="A",
                  answer="red", category="c", group="g", cycle="1", letter_logits=(1.5, -2.0), latents_fed=8,
                  triggered=True)
    path = tmp_path / "results.jsonl"
    write_results(path, HEADER, [item, dataclasses.replace(item, id="1", correct=False, parsed=None)])
    read = read_results(path)
    assert read.header == HEADER and read.header.protocol == CLEAN
    assert read.items[0] == item and read.items[1].parsed is None
    assert [each.correct for each in read.marks()] == [True, False]
    assert list(tmp_path.iterdir()) == [path]                              # no temporary file stays


def test_a_torn_last_line_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, HEADER, [Result("0", True), Result("1", False)])
    whole = path.read_bytes()
    for cut in range(2, len(Result("1", False).to_line())):
        path.write_bytes(whole[:-cut])
        with pytest.raises(BenchmarkError, match="results.jsonl:3: not JSON"):
            read_results(path)


@pytest.mark.parametrize("text, message", [
    ("", "first line is no header"),
    (Result("0", True).to_line(), "first line is no header"),
    (HEADER.to_line() + '{"id": "0"}\n', "results.jsonl:2: missing correct"),
    (HEADER.to_line() + '{"id": "0", "correct": 1}\n', "correct is 1, expected bool"),
    (HEADER.to_line() + '{"id": "0", "correct": true, "score": 1}\n', "results.jsonl:2: unexpected score"),
    (HEADER.to_line() + Result("0", True).to_line() * 2, "id '0' occurs twice"),
    ('{"header": {"benchmark": "vstar"}}\n', "header: missing family, checkpoint, protocol"),
    ('{"header": 3}\n', "header: unexpected int"),
])
def test_a_broken_file_of_results_is_refused(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        read_results(path)


def test_a_missing_file_of_results_is_named(tmp_path):
    with pytest.raises(BenchmarkError, match="nothing.jsonl: no such file"):
        read_results(tmp_path / "nothing.jsonl")


def test_flips_are_counted_and_named():
    line = compare(results("111100"), results("101011")).lines[0]
    assert (line.a, line.b) == pytest.approx((4 / 6, 4 / 6)) and line.difference == 0
    assert line.lost == ("1", "3") and line.gained == ("4", "5")
    assert line.p_value == 1.0 and line.items == 6


@pytest.mark.parametrize("lost, gained", [(0, 0), (5, 0), (1, 9), (7, 8), (12, 3)])
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(lost, gained):
    n, k = lost + gained, min(lost, gained)
    expected = min(1.0, 2 * binom.cdf(k, n, 0.5)) if n else 1.0           # symmetric, so twice the smaller tail
    assert mcnemar(lost, gained) == pytest.approx(expected, abs=1e-12)


def test_interval_of_the_difference_is_paired():
    # Same accuracies, but in one case every item flips the same way together: only pairing can tell them apart.
    rng = np.random.default_rng(0)
    a = "".join(rng.choice(["0", "1"], 400))
    same = compare(results(a), results(a)).lines[0]
    assert (same.low, same.high) == (0.0, 0.0)
    b = "".join("1" if i % 10 == 0 else each for i, each in enumerate(a))
    line = compare(results(a), results(b), resamples=20000).lines[0]
    change = np.array([int(y) - int(x) for x, y in zip(a, b)])
    half = 1.96 * change.std() / 20
    assert (line.low, line.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.004)


def test_grouped_items_widen_the_interval_and_say_so():
    rng = np.random.default_rng(0)
    a, b = ("".join(np.repeat(rng.choice(["0", "1"], 200), 2)) for _ in range(2))
    group = [f"pair {i // 2}" for i in range(400)]
    apart, joined = compare(results(a), results(b)), compare(results(a, group=group), results(b, group=group))
    width = [each.lines[0].high - each.lines[0].low for each in (apart, joined)]
    assert width[1] / width[0] == pytest.approx(np.sqrt(2), rel=0.1)
    assert not apart.caveats and "items come in groups" in joined.caveats[0]


def test_categories_get_their_own_lines():
    category = ["x", "x", "y", "y"]
    lines = compare(results("1100", category=category), results("1011", category=category)).lines
    assert [(line.category, line.items, line.lost, line.gained) for line in lines] == [
        ("", 4, ("1",), ("2", "3")), ("x", 2, ("1",), ()), ("y", 2, (), ("2", "3"))]


def test_order_of_items_does_not_matter():
    b = results("1010")
    assert compare(results("1100"), b) == compare(results("1100"), dataclasses.replace(b, items=b.items[::-1]))


def test_another_protocol_is_noted():
    paper = dataclasses.replace(HEADER, protocol=PAPER, checkpoint="runs/other")
    caveats = compare(results("10"), results("11", header=paper)).caveats
    assert "protocols differ in repetition_penalty: 1.0 against 1.05" in caveats and len(caveats) == 9


def test_table_and_json_show_what_was_found():
    comparison = compare(results("1100", category=list("xxyy")), results("1011", category=list("xxyy")))
    table = comparison.table()
    assert "A runs/lvr [clean; clean]" in table
    assert table.splitlines()[-3].split()[:5] == ["all", "4", "50.0", "75.0", "+25.0"]
    assert json.loads(json.dumps(comparison.to_json()))["lines"][0]["gained"] == ["2", "3"]


@pytest.mark.parametrize("b, message", [
    (results("11"), "runs/lvr.jsonl: 1 items that the other file lacks"),
    (results("111", header=dataclasses.replace(HEADER, benchmark="mmvp")), "benchmark is 'mmvp', expected 'vstar'"),
    (results("111", category=list("xyx")), "item 1: category is 'y', expected 'x'"),
    (Results("b.jsonl", HEADER, tuple(dataclasses.replace(item, letter="B") for item in results("111").items)),
     "item 0: letter is 'B', expected 'A' .*another answer key"),
])
def test_files_that_do_not_match_are_refused(b, message):
    with pytest.raises(BenchmarkError, match=message):
        compare(results("111"), b)


def test_empty_results_are_refused():
    with pytest.raises(BenchmarkError, match="no items to compare"):
        compare(results(""), results(""))
