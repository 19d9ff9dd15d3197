"""An evaluation gives every item the same result however it is batched, sharded, interrupted or resumed."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_folders import write_jsonl
from flax import nnx
from forked import Process
from PIL import Image
from test_vstar import ANNOTATION, vstar

from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import DataError
from lvr_jax.data.tokenizers import IM_END
from lvr_jax.evaluation import generation, results, runner, subject
from lvr_jax.evaluation.batches import batches, prompt_size
from lvr_jax.evaluation.protocol import Budget as Steps
from lvr_jax.evaluation.protocol import protocol
from lvr_jax.evaluation.results import read_results, write_results
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.files import whole_file
from lvr_jax.models.records import Images, Tokens

GOLDEN = Path(__file__).parents[1] / "golden"
SHORT = {"max_new_tokens": 16, "steps": Steps(4, 4, 4), "staged_steps": Steps(3, 3, 3)}


def checkpoint(folder: Path, name: str = "tiny_tied_trained_lvr") -> Path:
    shutil.copytree(GOLDEN / "checkpoints" / name, folder / name)
    shutil.copy(GOLDEN / "checkpoints" / "tokenizer.json", folder / name)
    (folder / name / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 40000}))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def lvr(folder):
    return open_subject(checkpoint(folder))


@pytest.fixture(scope="module")
def questions(folder):
    """Thirteen questions about pictures of five sizes, some about two pictures."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(13):
        names = []
        for k in range(1 + (number % 4 == 3)):
            side = 28 * (1 + number % 5)
            picture = rng.integers(0, 256, (side, 56 + 28 * (number % 3), 3)).astype(np.uint8)
            names.append(f"{number}-{k}.png")
            Image.fromarray(picture).save(folder / names[-1])
        records.append({"id": f"q{number}", "images": names, "question": "What is it?" + " Say." * (number % 3),
                        "options": ["red", "blue"], "answer": "AB"[number % 2], "category": f"c{number % 2}"})
    write_jsonl(folder / "set.jsonl", records)
    return folder / "set.jsonl"


def evaluated(lvr, questions, output, name="clean", **options):
    chosen = protocol(name, **SHORT)
    options = {"programs": 1, **options}
    return run(lvr, load_benchmark("jsonl", questions, chosen), chosen, output, progress=False, **options)


def without_numbers(results):
    return [dataclasses.replace(item, letter_logits=()) for item in results.items]


# Results -------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_rows_a_batch_do_not_change_any_item(lvr, questions, tmp_path):
    found = [evaluated(lvr, questions, tmp_path / f"{rows}.jsonl", rows=rows) for rows in (1, 3, 8)]
    assert [item.id for item in found[0].items] == [f"q{i}" for i in range(13)]
    assert without_numbers(found[0]) == without_numbers(found[1]) == without_numbers(found[2])
    assert {item.latents_fed for item in found[0].items} > {0}, "some items must reason in latents, some must not"
    logits = [[x for item in results.items for x in item.letter_logits] for results in found]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-3)
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-3)


def naive(lvr, sample, chosen) -> tuple[list[int], int]:
    """Tokens and number of latents, by one full forward pass a token: no cache, no batch, no state machine."""
    model = nnx.merge(lvr.graph, lvr.params)
    prompt = encode_prompt(sample, lvr.tokenizer, min_pixels=lvr.min_pixels, max_pixels=lvr.max_pixels,
                           protocol=chosen.image_protocol)
    geometry = Geometry(lvr.config.vision.merge, lvr.config.vision.window)
    T = len(prompt.tokens)
    batch = collate([[prompt]], Budget(T, geometry.size(prompt).windows), geometry)
    encode = jax.jit(lambda images: model.encode(images)[0])
    merged = encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]))
    S = T + chosen.max_new_tokens + chosen.steps.accuracy
    seen_at_first = model.embed(batch["tokens"], batch["vision_slot"], merged)
    x = jnp.zeros((1, S, lvr.config.text.hidden)).at[:, :T].set(seen_at_first)
    start = batch["positions"].max() + 1
    later = np.broadcast_to(start + np.arange(S - T), (1, 3, S - T))
    positions = np.concatenate([batch["positions"], later], axis=2)

    @jax.jit
    def step(x, n):
        segment = (jnp.arange(S)[None] < n).astype(jnp.int32)
        hidden, _, _ = model.decode(x, Tokens(positions, segment))
        return hidden[0, n - 1], model.text.logits(hidden[0, n - 1])

    ids, seen, n, left, latents = [], set(map(int, prompt.tokens)), T, 0, 0
    marker, penalty = lvr.tokenizer.id("<|lvr_start|>"), chosen.repetition_penalty
    while True:
        hidden, logits = step(x, n)
        logits = np.array(logits)
        known = np.array(sorted(seen))
        logits[known] = np.where(logits[known] > 0, logits[known] / penalty, logits[known] * penalty)
        picked = int(logits.argmax())
        left = left - 1 if left else (chosen.steps.accuracy if ids and ids[-1] == marker else 0)
        ids.append(picked)
        seen.add(picked)
        if not left and (picked in lvr.stop or len(ids) >= chosen.max_new_tokens):
            return ids, latents
        x = x.at[0, n].set(hidden if left else model.embed(jnp.array([[picked]]))[0, 0])
        latents += left > 0
        n += 1


@pytest.mark.parametrize("name", ["clean", "paper"])
def test_replies_are_those_of_one_full_pass_a_token(lvr, questions, tmp_path, name):
    chosen = protocol(name, **SHORT)
    benchmark = load_benchmark("jsonl", questions, chosen)
    results = evaluated(lvr, questions, tmp_path / "x.jsonl", name).items
    entered = [i for i, item in enumerate(results) if item.triggered]
    for i in (entered[0], next(i for i in range(13) if i not in entered)):
        ids, latents = naive(lvr, benchmark[i], chosen)
        assert (results[i].reply, results[i].latents_fed) == (lvr.tokenizer.decode(ids), latents)
        assert results[i].prompt == benchmark[i].question


def test_the_penalty_of_the_paper_protocol_changes_replies(lvr, questions, tmp_path):
    clean, paper = (evaluated(lvr, questions, tmp_path / name, name).items for name in ("clean", "paper"))
    assert [a.reply for a in clean] != [b.reply for b in paper]


def test_the_budget_of_the_protocol_is_what_is_fed(folder, questions, tmp_path):
    staged = open_subject(checkpoint(folder, "tiny_tied_trained_plvr2"))
    assert staged.spec.name == "p_lvr"
    assert staged.plan(protocol("clean", **SHORT)).quota.tolist() == [6, 3]
    assert staged.plan(protocol("clean", **SHORT, context_factor=3)).quota.tolist() == [9, 3]
    results = evaluated(staged, questions, tmp_path / "x.jsonl")
    assert results.header.details["latents"] == {"context": 6, "target": 3}
    assert any(item.latents_fed for item in results.items)


def test_text_only_replies_never_enter_latent_mode(lvr, questions, tmp_path):
    plain = dataclasses.replace(lvr, spec=subject.TEXT_ONLY)
    latent, text = (evaluated(each, questions, tmp_path / each.spec.name) for each in (lvr, plain))
    for a, b in zip(latent.items, text.items):
        assert b.latents_fed == 0 and not b.triggered
        head = a.reply.split("<|lvr_start|>")[0]                # up to the marker the two are the same text
        assert b.reply.startswith(head) and (a.triggered or a.reply == b.reply)
    assert any(item.triggered for item in latent.items)


def test_letter_logits_are_those_that_the_answer_is_picked_from(lvr, questions, tmp_path):
    """Where an answer tag was written, the larger of two letter logits belongs to the letter, if one was written."""
    results = evaluated(lvr, questions, tmp_path / "x.jsonl")
    with_logits = [item for item in results.items if item.letter_logits]
    assert with_logits and all(len(item.letter_logits) == 2 for item in with_logits)
    assert all(item.letter_logits for item in results.items if item.triggered)      # at least after the latents


def test_an_answer_in_a_box_is_read_like_one_in_a_tag(lvr, questions):
    chosen = protocol("clean", **SHORT)
    rows = load_benchmark("jsonl", questions, chosen).rows
    boxed = dataclasses.replace(lvr, spec=dataclasses.replace(lvr.spec, answer="boxed"))
    method = generation.Generation(boxed, rows, chosen, "strict_mapping", runner.Compute())
    assert method.tagged("so \\boxed{A} or \\boxed{ B }.") == "<answer>B</answer>"
    assert method.tagged("no box") == "no box"
    tagged = generation.Generation(lvr, rows, chosen, "strict_mapping", runner.Compute())
    assert tagged.tagged("\\boxed{A}") == "\\boxed{A}"


# Interruptions -------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import test_runner as t
from lvr_jax.evaluation import generation
read, calls = generation.Generation.read, []
def read_and_die(self, *arguments):
    calls.append(1)
    if len(calls) == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, *arguments)
generation.Generation.read = read_and_die
t.evaluated(t.open_subject({checkpoint!r}), {questions!r}, {output!r}, rows=3)
"""


def parts(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.parts").glob("*.jsonl"))


def test_a_killed_run_goes_on_and_ends_in_the_same_file(lvr, questions, tmp_path, monkeypatch):
    evaluated(lvr, questions, tmp_path / "whole.jsonl", rows=3)
    code = KILLED.format(tests=str(Path(__file__).parent), batch=3, checkpoint=lvr.name, questions=str(questions),
                         output=str(tmp_path / "x.jsonl"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = Process(["-c", code], environment)
    assert run.wait() == -signal.SIGKILL, run.communicate()
    there = parts(tmp_path / "x.jsonl")
    assert [len(read_results(part).items) for part in there] == [3, 3] and not (tmp_path / "x.jsonl").exists()
    there[1].with_name(f"{there[1].name}.7.partial").write_text("killed in the middle of writing")
    ran = []
    read = generation.Generation.read
    monkeypatch.setattr(generation.Generation, "read",
                        lambda self, rows, *rest: ran.append(len(rows)) or read(self, rows, *rest))
    evaluated(lvr, questions, tmp_path / "x.jsonl", rows=3)
    assert ran == [3, 3, 1], "two batches were there"
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.jsonl", "x.jsonl"]


def test_a_finished_run_runs_nothing(lvr, questions, tmp_path, monkeypatch):
    evaluated(lvr, questions, tmp_path / "x.jsonl")
    before = (tmp_path / "x.jsonl").read_bytes()
    monkeypatch.setattr(runner, "prompt_size", None)                    # not even the pictures' sizes
    evaluated(lvr, questions, tmp_path / "x.jsonl", rows=1)
    assert (tmp_path / "x.jsonl").read_bytes() == before


def test_a_full_disk_names_the_file_and_keeps_what_is_finished(lvr, questions, tmp_path, monkeypatch):
    write, calls = whole_file.write_whole, []

    def full_after_two(path, content):
        calls.append(path)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(results, "write_whole", full_after_two)
    with pytest.raises(OSError, match=r"x.jsonl.parts/\d+.jsonl: No space left on device; what was finished is kept"):
        evaluated(lvr, questions, tmp_path / "x.jsonl", rows=3)
    assert sum(len(read_results(part).items) for part in parts(tmp_path / "x.jsonl")) == 6
    monkeypatch.undo()
    whole = evaluated(lvr, questions, tmp_path / "y.jsonl", rows=3)
    assert evaluated(lvr, questions, tmp_path / "x.jsonl", rows=3).items == whole.items


def test_more_items_are_added_and_fewer_are_refused(lvr, questions, tmp_path):
    chosen = protocol("clean", **SHORT)
    benchmark = load_benchmark("jsonl", questions, chosen)
    run(lvr, benchmark.subset(range(5)), chosen, tmp_path / "x.jsonl", progress=False)
    whole = run(lvr, benchmark, chosen, tmp_path / "x.jsonl", progress=False)
    assert without_numbers(whole) == without_numbers(evaluated(lvr, questions, tmp_path / "y.jsonl"))
    with pytest.raises(BenchmarkError, match="holds 8 items that this run does not ask for"):
        run(lvr, benchmark.subset(range(5)), chosen, tmp_path / "x.jsonl", progress=False)
    assert len(read_results(tmp_path / "x.jsonl").items) == 13


@pytest.mark.parametrize("other, said", [
    ({"max_new_tokens": 17}, "protocol.name 'clean, max_new_tokens=16"), ({"steps": Steps(5, 4, 4)}, "protocol.name"),
])
def test_results_under_another_protocol_are_refused(lvr, questions, tmp_path, other, said):
    evaluated(lvr, questions, tmp_path / "x.jsonl")
    chosen = protocol("clean", **{**SHORT, **other})
    with pytest.raises(BenchmarkError, match="holds another evaluation") as error:
        run(lvr, load_benchmark("jsonl", questions, chosen), chosen, tmp_path / "x.jsonl", progress=False)
    assert said in str(error.value)


def test_results_of_other_weights_under_the_same_name_are_refused(lvr, questions, tmp_path):
    evaluated(lvr, questions, tmp_path / "x.jsonl")
    params = jax.tree.map(lambda x: x, lvr.params)
    params["text"]["norm"] = params["text"]["norm"] * 1.01
    trained = dataclasses.replace(lvr, params=params, weights=subject.fingerprint(params))
    with pytest.raises(BenchmarkError, match=r"details.weights \d+, now \d+"):
        evaluated(trained, questions, tmp_path / "x.jsonl")


@pytest.mark.parametrize("change, said", [
    ({"letter": "D"}, "item q2 has letter 'D', the benchmark 'A'"),
    ({"category": "other"}, "item q2 has category 'other', the benchmark 'c0'"),
    ({"correct": True, "parsed": "C"}, "item q2 is marked right as 'C', which its reply does not give"),
])
def test_results_that_contradict_the_benchmark_or_themselves_are_refused(lvr, questions, tmp_path, change, said):
    whole = evaluated(lvr, questions, tmp_path / "x.jsonl")
    items = [dataclasses.replace(item, **change) if item.id == "q2" else item for item in whole.items]
    write_results(tmp_path / "x.jsonl", whole.header, items)
    with pytest.raises(BenchmarkError, match=re.escape(said)):
        evaluated(lvr, questions, tmp_path / "x.jsonl")


@pytest.mark.parametrize("field, value", [
    ("question", "Which?"), ("options", ["red", "green"]), ("image", "other.png"),
])
def test_results_of_another_question_under_the_same_id_are_refused(lvr, folder, tmp_path, field, value):
    record = {"id": "0", "image": "one.png", "question": "What?", "options": ["red", "blue"], "answer": "A"}
    for number, name in enumerate(("one.png", "other.png")):
        Image.fromarray(np.full((56, 56, 3), number, np.uint8)).save(tmp_path / name)
    write_jsonl(tmp_path / "set.jsonl", [record])
    evaluated(lvr, tmp_path / "set.jsonl", tmp_path / "x.jsonl")
    before = (tmp_path / "x.jsonl").read_bytes()
    write_jsonl(tmp_path / "set.jsonl", [{**record, field: value}])
    with pytest.raises(BenchmarkError, match="item 0 is of another question, options, answer or picture"):
        evaluated(lvr, tmp_path / "set.jsonl", tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == before


def test_parts_of_batches_of_another_size_are_gone_on_with(lvr, questions, tmp_path, monkeypatch):
    whole = evaluated(lvr, questions, tmp_path / "whole.jsonl", rows=3)
    there = tmp_path / "x.jsonl.parts"
    there.mkdir()
    write_results(there / "000000.jsonl", whole.header, whole.items[:12])
    ran = []

    def noting(sample, *arguments, **options):
        ran.append(sample.id)
        return encode_prompt(sample, *arguments, **options)

    monkeypatch.setattr(runner, "encode_prompt", noting)
    found = evaluated(lvr, questions, tmp_path / "x.jsonl", rows=1)
    assert without_numbers(found) == without_numbers(whole) and ran == ["q12"]


# Batches -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image_protocol", ["train", "evaluate", "processor"])
def test_sizes_without_decoding_are_those_of_the_prompts(lvr, questions, image_protocol):
    benchmark = load_benchmark("jsonl", questions, protocol("clean"))
    geometry = Geometry()
    limits = {"min_pixels": 3000, "max_pixels": 9000, "protocol": image_protocol}
    sizes = [prompt_size(sample, lvr.tokenizer, geometry, **limits) for sample in benchmark]
    assert sizes == [geometry.size(encode_prompt(sample, lvr.tokenizer, **limits)) for sample in benchmark]
    assert len(set(sizes)) > 3


def test_the_size_counts_the_pictures_that_latents_come_from(lvr):
    benchmark = load_benchmark("digit_search", None, protocol("clean"), size=2, mask_box=True)
    limits = {"min_pixels": 3000, "max_pixels": 90000, "protocol": "train"}
    example = encode_prompt(benchmark[0], lvr.tokenizer, **limits)
    assert prompt_size(benchmark[0], lvr.tokenizer, Geometry(), **limits) == Geometry().size(example)


def test_batches_hold_every_item_once_in_few_budgets_with_little_padding():
    rng = np.random.default_rng(1)
    pooled = rng.integers(9, size=700).tolist()         # in no order of size
    lengths = (rng.gamma(2, 200, 700) + 40).astype(int).tolist()
    sizes = [Budget(t, t // 20 + int(rng.integers(4)), p) for t, p in zip(lengths, pooled)]
    for rows in (1, 8, 32):
        made = batches(sizes, rows, programs=4)
        assert sorted(i for batch in made for i in batch.items) == list(range(700))
        assert all(batch.budget.holds(sizes[i]) for batch in made for i in batch.items)
        assert all(len(batch.items) <= rows for batch in made)
        budgets = {(batch.budget.tokens, batch.budget.windows): batch.budget for batch in made}.values()
        assert 1 < len(budgets) <= 4
        area = lambda b: b.tokens + 16 * b.windows  # noqa: E731
        padded = sum(area(batch.budget) * rows for batch in made)
        one = area(Budget(max(s.tokens for s in sizes), max(s.windows for s in sizes))) * 700
        assert padded < 0.6 * one
        assert area(made[0].budget) == max(map(area, budgets)), "the largest first: what does not fit fails at once"


def test_equal_sizes_are_one_program_and_few_items_are_not_cut_up():
    assert len({batch.budget for batch in batches([Budget(90, 2)] * 50, 8)}) == 1
    assert len({batch.budget for batch in batches([Budget(90 + i, 2) for i in range(8)], 8)}) == 1


@pytest.mark.slow
def test_no_more_programs_are_compiled_than_were_said(lvr, questions, tmp_path):
    before, lines = generation.program._cache_size(), []
    evaluated(lvr, questions, tmp_path / "x.jsonl", rows=2, programs=3, say=lines.append)
    compiled = generation.program._cache_size() - before
    assert len(lines) == 1 and lines[0].startswith(f"{compiled} programs of 2 rows: ") and 1 < compiled <= 3


# Likelihood ----------------------------------------------------------------------------------------------------------

def test_the_likeliest_option_by_one_full_pass_an_option_wins(lvr, tmp_path):
    chosen = protocol("clean", prompts="own", extraction="own")
    benchmark = load_benchmark("vstar", vstar(tmp_path / "vstar"), chosen, any_count=True)
    results = run(lvr, benchmark, chosen, tmp_path / "x.jsonl", rows=2, programs=1, progress=False)
    model, geometry = nnx.merge(lvr.graph, lvr.params), Geometry()

    @jax.jit
    def log_probs(batch):
        merged, _ = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]))
        x = model.embed(batch["tokens"], batch["vision_slot"], merged)
        hidden, _, _ = model.decode(x, Tokens(batch["positions"], batch["segment"]))
        return jax.nn.log_softmax(model.text.logits(hidden[0]))

    for sample, item in zip(benchmark, results.items):
        assert "(A)" not in item.prompt, "options are never shown"
        scores = []
        for option in ANNOTATION["options"]:
            prompt = encode_prompt(sample, lvr.tokenizer, min_pixels=784, max_pixels=40000, protocol="train",
                                   suffix=option + IM_END)
            own = len(lvr.tokenizer.encode(option + IM_END))
            T = len(prompt.tokens)
            predicted = np.asarray(log_probs(collate([[prompt]], Budget(200, 2), geometry)))[T - own - 1 : T - 1]
            scores.append(float(np.mean(predicted[np.arange(own), prompt.tokens[-own:]])))
        np.testing.assert_allclose(item.letter_logits, scores, rtol=1e-4)
        best = int(np.argmax(scores))
        assert item.reply == ANNOTATION["options"][best] and item.correct == (best == 0)


# Errors ---------------------------------------------------------------------------------------------------------------

def test_a_penalty_that_spares_latent_slots_is_refused(lvr, questions, tmp_path):
    chosen = protocol("paper", penalise_slot_ids=False)
    with pytest.raises(BenchmarkError, match="not implemented"):
        run(lvr, load_benchmark("jsonl", questions, chosen), chosen, tmp_path / "x.jsonl", progress=False)


def test_an_image_that_breaks_on_the_way_names_its_file_and_keeps_what_is_done(lvr, folder, tmp_path):
    records = []
    for number in range(4):
        Image.fromarray(np.full((56, 56, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        records.append({"id": str(number), "image": f"{number}.png", "question": "What?", "answer": "red"})
    write_jsonl(tmp_path / "set.jsonl", records)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:50])                # its header is fine
    with pytest.raises(DataError, match="2.png"):
        evaluated(lvr, tmp_path / "set.jsonl", tmp_path / "x.jsonl", rows=1)
    done = [item.id for part in parts(tmp_path / "x.jsonl") for item in read_results(part).items]
    assert done == ["0", "1"], "what was finished before it stays"
    (tmp_path / "2.png").write_bytes(whole)
    assert len(evaluated(lvr, tmp_path / "set.jsonl", tmp_path / "x.jsonl", rows=1).items) == 4
