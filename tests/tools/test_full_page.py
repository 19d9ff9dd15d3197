"""The full study's page is made of its results alone: the same bytes twice, every outcome, no run left out."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lvr_jax.files.json_io import JsonError
from study import store
from study.blocks import Blocks
from study.page import report, text
from study.page.findings import Checkpoint, Counts
from study.runs import runs

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

ITEMS = 400
BLOCKS = {
    "lambda_plain": "plain: lvr lambda=0|0.1|1", "lambda_bottleneck": "bottleneck: lvr lambda=0|0.1|1",
    "trajectories": "plain: lvr at=60|180",
}  # fmt: skip


def prediction(name, quantity, bounds, where=None, block="lambda_bottleneck", **fields):
    return {"name": name, "block": block, "statement": f"It is said of {name}.", "direction": "up",
            "quantity": quantity, "where": where or {}, "low": bounds[0], "high": bounds[1], **fields}  # fmt: skip


# Of the made-up results below: accuracy of the bottleneck rises with cosine, that of the plain setting does not.
PREDICTIONS = (
    prediction("what holds", "correlation", (0.7, None), of="accuracy", x="cosine"),
    prediction("what fails", "difference", (None, 0.0), {"lambda": 1.0}, against={"lambda": 0.0}, of="accuracy"),
    prediction("what is open: |r| < 0.05", "within", (-0.05, 0.05), block="lambda_plain", of="accuracy", x="cosine",
               by="lambda"),
    prediction("what has no runs", "mean", (-2.0, 2.0), block="trajectories", of="through"),
)  # fmt: skip


def study(place: Path) -> Blocks:
    from configs import full_study

    c = full_study.get_config()
    c.unlock()
    c.blocks, c.order, c.predictions = type(c)(BLOCKS), tuple(BLOCKS), PREDICTIONS
    c.results = str(place / "full_study" / "results")
    return Blocks(c, place / "work")


def measured(accuracy: float, blind: float, cosine: float) -> dict:
    """What a run measured, all counts of it consistent."""
    right, seen = round(ITEMS * accuracy), round(ITEMS * blind)

    def condition(becomes: int) -> dict:
        gained = 4 + max(becomes - right, 0)
        return {"n": ITEMS, "clean": right, "right": becomes, "gained": gained, "lost": right - becomes + gained,
                "delta": (becomes - right) / ITEMS}  # fmt: skip

    return {
        **dict.fromkeys(store.MEASURED),
        "scores": {"content": {"items": 1000, "right": round(1000 * accuracy)}},
        "audit": {"items": ITEMS, "right": right},
        "conditions": {"answer_blind_to_latents": condition(seen), "donor_directed": condition(right - 12),
                       "oracle": condition(min(right + 6, ITEMS - 4)), "markers_only": condition(right - 2)},
        "argued": {"donor_directed": {"items": 180, "clean": 6, "fed": 30, "p": 0.001}},
        "cosine": {"taught": cosine, "free": cosine - 0.02, "box_mean": 0.4},
        "training": None, "seconds": {"train": {"elapsed": 200.0, "processor": 100.0}},
    }  # fmt: skip


def fill(blocks: Blocks, without: str = "trajectories") -> None:
    rng = np.random.default_rng(0)
    for run in blocks.runs:
        if without in run.blocks:
            continue
        axes = blocks._axes(run)
        cosine = 0.07 + 0.5 * axes["lambda"] ** 0.3 + rng.normal(0, 0.01)
        accuracy = 0.3 + 0.9 * cosine if run.setting == "bottleneck" else 0.95 + rng.normal(0, 0.005)
        blind = 0.2 if run.setting == "bottleneck" else accuracy
        blocks.store.write(run, blocks.keys[run.name], axes, measured(accuracy, blind, cosine))
    failed = blocks.runs[0]
    blocks.store.write(failed, blocks.keys[failed.name], blocks._axes(failed),
                       {"status": store.FAILED, "error": "train lvr: the loss is not finite"})  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    blocks = study(tmp_path_factory.mktemp("made"))
    fill(blocks)
    return blocks, report.write(blocks)


def files(page: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in page.parent.iterdir() if p.is_file()}


def test_the_same_results_give_the_same_bytes_anywhere(made, tmp_path):
    blocks, page = made
    first = files(page)
    assert {"README.md", "headline.svg"} <= set(first) and sum(map(len, first.values())) < 200_000
    assert files(report.write(blocks)) == first
    other = study(tmp_path)
    fill(other)
    assert files(report.write(other)) == first


def test_each_outcome_of_a_prediction_is_told(made):
    lines = made[1].read_text().splitlines()
    assert any(line.startswith("- **Held**, 1 of 4: *lambda, bottleneck*: It is said of what holds.") for line in lines)
    rows = [line for line in lines if line.startswith("| ")]
    row = {name: next(line for line in rows if f"It is said of {name}" in line) for name in
           ("what holds", "what fails", "what is open", "what has no runs")}  # fmt: skip
    assert "**held**" in row["what holds"] and row["what holds"].endswith("| held |")
    assert "**failed**" in row["what fails"] and "**undecided**" in row["what is open"]
    assert "| 0 | – | **undecided** | – | undecided |" in row["what has no runs"]
    assert "- **Undecided**, 2 of 4 (1 of them wait for runs): the table below has them." in lines
    assert any(line.startswith("Written down with their bounds before the first run. Of 4, 1 held, 1 failed, 2 "
                               "undecided;") for line in lines)  # fmt: skip


def test_no_run_is_left_out(made):
    blocks, page = made
    said = page.read_text()
    assert "failed: `lvr lambda=0` (train lvr: the loss is not finite)" in said
    assert "Block trajectories, not run (all of it): `lvr at=60`" in said
    assert "Designed, without runs in this study: the paper's variants." in said
    assert "Shared parameters (latents and weights moved between checkpoints): not run." in said
    rows = [line.strip("| ").split(" | ") for line in said.split("## What was run")[1].split("##")[0].splitlines()]
    counts = {row[0]: [int(cell) for cell in row[1:]] for row in rows if len(row) == 5 and row[1].isdigit()}
    assert counts == {"lambda, plain": [9, 8, 1, 0], "lambda, bottleneck": [9, 9, 0, 0], "training time": [6, 0, 0, 6]}
    assert len(runs(blocks.config, blocks.workdir)) == 24


def test_tables_are_whole_whatever_is_in_a_cell(made):
    """A bar in a statement, |r| < 0.3, is no new column."""
    columns: set[int] = set()
    for line in made[1].read_text().splitlines():
        bars = line.replace("\\|", "").count("|") if line.startswith("|") else 0
        columns = columns | {bars} if bars else set()
        assert len(columns) <= 1, line
    assert "\\|r\\| < 0.05" in made[1].read_text()


def test_printed_parts_sum_to_the_printed_accuracy(made):
    rows = [line.split(" | ") for line in made[1].read_text().splitlines() if line.startswith("| `")]
    number = lambda cell: float(cell.split(" [")[0].replace("−", "-"))  # noqa: E731
    assert len(rows) == 6
    for row in rows:
        accuracy, blind, through = (number(row[n]) for n in (2, 4, 5))
        assert accuracy == pytest.approx(blind + through, abs=1e-9), row


def test_two_blocks_with_opposite_relations_are_not_pooled(made):
    found = report.gather(made[0])
    lines = {line.label: line for line in found.lines}
    assert {"lambda, plain", "lambda, bottleneck"} <= set(lines)
    assert [line.label for line in found.panels] == ["lambda, plain", "lambda, bottleneck"]
    line = lines["lambda, bottleneck"]
    assert [line.place(seeds[0]) for seeds in line.ordered] == [0.0, 0.1, 1.0]
    assert "No correlation over all of them together is given" in text.page(found)


def test_settings_of_one_block_are_told_apart():
    """Accuracy falls with cosine where all see the picture and rises behind the bottleneck, 40 points below."""
    def checkpoint(n, setting):
        behind = setting == "bottleneck"
        right = (50 if behind else 96) + (n if behind else -n)
        return dataclasses.replace(state(f"{setting} {n}", n / 10), right=right, setting=setting, conditions={
            "answer_blind_to_latents": Counts(100, right, 20 if behind else right, 0, right - 20 if behind else 0)})

    there = tuple(checkpoint(n, setting) for setting in ("plain", "bottleneck") for n in range(5))
    block = text.Block("b", "targets", "", tuple(c.name for c in there), there, {})
    page = text.page(text.Findings((block,), (), (), (), (), report.Line("", "dark", ()), None, "command"))
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| targets: ")}
    assert set(rows) == {"targets: plain", "targets: bottleneck"}
    assert "+1.00" in rows["targets: plain"] and "−1.00" not in rows["targets: bottleneck"]       # carried blind
    for said in ("| targets: plain | 5 | −1.00", "| targets: bottleneck | 5 | +1.00", "in 2 blocks"):
        assert said in page, said
    assert "−1.00 [−1.00, −1.00] (plain), +1.00 [+1.00, +1.00] (bottleneck)" in page


def state(name, cosine, **axes):
    axes = {"at": 300, "steps": 300, "lambda": 0.1, "attention": "full", "feedback": "teacher", **axes}
    return Checkpoint(name, ("b",), name, 0, axes, 100, 90, cosine, None, {})


def test_lines_run_along_one_axis_and_attention_feedback_and_runs_set_them_apart():
    lines = lambda *there: report.lines_of(text.Block("b", "time", "", (), there, {}))  # noqa: E731
    in_time = [state(f"{a} {n}", 0.1, at=n, attention=a) for a in ("full", "bottleneck") for n in (60, 120, 300)]
    assert [(x.label, x.along, len(x.checkpoints)) for x in lines(*in_time)] == [
        ("time: plain", "at", 3), ("time: bottleneck", "at", 3)
    ]
    fed = [state(f"{f} {n}", 0.1, feedback=f, **{"lambda": n}) for f in ("teacher", "rollout") for n in (0.0, 1.0)]
    assert [(x.label, x.along) for x in lines(*fed)] == [("time: teacher", "lambda"), ("time: rollout", "lambda")]
    noisy = [state(f"{n} {u}", 0.1, noise=n, until=u) for n, u in ((0.0, None), (1.0, None), (0.0, 0.3))]
    assert [(x.label, x.along) for x in lines(*noisy)] == [("time", "cosine")]
    taught = [state("own", 0.1, target="own"), state("far", 0.2, target="wrong_box", attention="bottleneck")]
    assert [(x.label, x.along) for x in lines(*taught)] == [("time: plain", "cosine"), ("time: bottleneck", "cosine")]


def test_earlier_states_count_in_the_row_of_their_block_alone(tmp_path):
    """States of one run are no checkpoints of their own among those of all blocks."""
    blocks, other = study(tmp_path / "with"), study(tmp_path / "without")
    fill(blocks, without="")
    fill(other)
    pages = [text.page(report.gather(place)).split("## Cosine and accuracy,")[1].split("##")[0]
             for place in (blocks, other)]  # fmt: skip
    assert "| training time | 6 |" in pages[0] and "| training time |" not in pages[1]
    inside = [next(line for line in page.splitlines() if line.startswith("| **inside")) for page in pages]
    assert inside[0] == inside[1] and "| 17 |" in inside[0]


def test_a_block_with_results_of_earlier_blocks_alone_has_no_section_yet(tmp_path):
    from configs import full_study

    c = full_study.get_config()
    c.unlock()
    c.blocks = type(c)({"lambda_plain": "plain: lvr lambda=0|0.1", "routing": "plain: lvr, lvr route=latent_only"})
    c.order, c.predictions, c.results = ("lambda_plain", "routing"), (), str(tmp_path / "full_study/results")
    blocks = Blocks(c, tmp_path)
    fill(blocks, without="neither")
    for run in blocks.runs:
        if run.blocks == ("routing",):
            blocks.store.path(run).unlink()
    said = text.page(report.gather(blocks))
    assert "| routes by position | 6 | 3 | 0 | 3 |" in said and "## Routes by position" not in said
    assert "## Lambda, plain" in said and [line.label for line in report.gather(blocks).lines][0] == "lambda, plain"
    assert "| routes by position | 3 |" not in said


def test_kinds_of_questions_are_told_apart(tmp_path):
    blocks = study(tmp_path)
    fill(blocks)
    run = blocks.runs[3]
    stored = blocks.store.read(run)
    stored["scores"]["by_category"] = {"colour": {"items": 500, "right": 490}, "digit": {"items": 500, "right": 100}}
    blocks.store.path(run).write_text(json.dumps(stored))
    assert "accuracy lies between 98.0 and 98.0 % (colour), 20.0 and 20.0 % (digit)" in text.page(report.gather(blocks))


def test_nothing_is_decided_while_a_run_is_missing(tmp_path):
    """The estimate holds with and without the run; a failed one is no longer waited for."""
    blocks = study(tmp_path)
    fill(blocks)
    judged_on = lambda: report.gather(blocks).predictions[0].judged_on(0.95)  # noqa: E731
    assert judged_on().low > 0.7
    run = next(run for run in blocks.runs if run.name == "bottleneck: lvr lambda=1 seed 2")
    blocks.store.path(run).unlink()
    assert judged_on() is None and report.gather(blocks).predictions[0].estimate(0.95).low > 0.7
    assert "+1.00 [+1.00, +1.00] so far | **undecided**" in text.page(report.gather(blocks))
    blocks.store.write(run, blocks.keys[run.name], blocks._axes(run), {"status": store.FAILED, "error": "stopped"})
    assert judged_on().low > 0.7


def test_a_result_of_an_older_study_does_not_count(tmp_path):
    blocks = study(tmp_path)
    fill(blocks)
    run = blocks.runs[1]
    stored = blocks.store.read(run)
    blocks.store.path(run).write_text(json.dumps({**stored, "key": "older"}))
    block = report.gather(blocks).blocks[0]
    assert run.name in block.missing and len(block.checkpoints) == 7


def change(path: Path, field: str, *value) -> None:
    """Sets a field of a stored result, or removes it."""
    result = json.loads(path.read_text())
    *above, last = field.split(".")
    node = result
    for name in above:
        node = node[name]
    node.pop(last, None)
    node |= dict.fromkeys([last], value[0]) if value else {}
    path.write_text(json.dumps(result))


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_text(path.read_text()[:100]), "not JSON"),
    (lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "blocks": ["other"]})),
     "is of block 'other', expected some of lambda_plain, lambda_bottleneck, trajectories"),
    (lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 2')), "format is 2, expected 1"),
    (lambda path: path.write_text(path.read_text().replace('"lost"', '"last"')), "latents.lost is missing"),
    (lambda path: path.write_text(path.read_text().replace('"gained": 4', '"gained": 5')), "expected clean \\+ gained"),
    (lambda path: change(path, "name"), "name is missing"),
    (lambda path: change(path, "name", "foo"), "name is 'foo', expected '.*', of the run that has"),
    (lambda path: change(path, "scores.by_category", "x"), "scores.by_category is 'x', expected an object or null"),
    (lambda path: change(path, "seed", "0"), "seed is '0'"),
    (lambda path: change(path, "verdict", "x"), "verdict is 'x', expected an object or null"),
    (lambda path: change(path, "status", "failed"), "error is None, expected text"),
    (lambda path: change(path, "scores.content.items", 0), "content.items is 0, expected a whole number above 0"),
    (lambda path: change(path, "scores.content.right", 99999), "content.right is 99999, expected .*at most 1000"),
    (lambda path: change(path, "audit.right", "5"), "audit.right is '5', expected a whole number, at most 400"),
    (lambda path: change(path, "cosine.taught", 5.0), "cosine.taught is 5.0, expected -1 to 1"),
    (lambda path: change(path, "cosine.taught", float("nan")), "cosine.taught is nan"),
    (lambda path: change(path, "conditions.oracle.delta", 0.9), "oracle.delta is 0.9, expected .*, by its counts"),
    (lambda path: change(path, "argued.donor_directed.items", 0), "argued.donor_directed.items is 0"),
    (lambda path: path.write_text(path.read_text().replace('"items": 400', '"items": 401')), "those of the clean pass"),
])  # fmt: skip
def test_a_damaged_result_is_refused_by_name_in_one_line(tmp_path, damage, message):
    blocks = study(tmp_path)
    fill(blocks)
    path = blocks.store.path(blocks.runs[2])
    damage(path)
    with pytest.raises(JsonError, match=message) as error:
        report.gather(blocks)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("shared", [{}, {"format": 1, "checkpoints": ["a"]}, {"checkpoints": 3}])
def test_shared_parameters_of_another_kind_are_refused_by_name(tmp_path, shared):
    blocks = study(tmp_path)
    blocks.store.folder.mkdir(parents=True)
    (blocks.store.folder.parent / report.SHARED).write_text(json.dumps(shared))
    with pytest.raises(JsonError, match="shared.json: .*, expected what tools/transplant.py writes"):
        report.gather(blocks)


def test_a_study_without_any_result_has_a_page_that_says_so(tmp_path):
    said = report.write(study(tmp_path)).read_text()
    assert "Of 4, 0 held, 0 failed, 4 undecided" in said and "not run (all of it)" in said
    assert "headline.svg" not in said


def test_a_page_of_others_is_not_written_over(tmp_path):
    """Results in a folder beside a README that is not the study's, such as a checkout's own."""
    blocks = study(tmp_path)
    (tmp_path / "full_study").mkdir()
    (tmp_path / "full_study" / report.PAGE).write_text("# Mine\n")
    with pytest.raises(ValueError, match="README.md: exists, and is no page of a study"):
        report.write(blocks)
    assert [path.name for path in (tmp_path / "full_study").iterdir()] == [report.PAGE]
    assert (tmp_path / "full_study" / report.PAGE).read_text() == "# Mine\n"
