"""Visual-CoT's held-out part, a user's own jsonl and generated scenes are read and rendered as documented."""

import json
import pickle

import numpy as np
import pytest
from benchmark_folders import number_of, write_image, write_jsonl

from lvr_jax.data.images import load_image
from lvr_jax.evaluation import scoring
from lvr_jax.evaluation.benchmarks import BENCHMARKS, SCENES, BenchmarkError, load, visual_cot


def visual_cot_record(number, box="[2, 3, 6, 6]", answer="teddy bear"):
    image = f"cot/vsr/{number}.jpg"
    return {"dataset": "vsr", "split": "val", "question_id": number, "image": [image, f"{image}###{box}"],
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is under the couch? " + visual_cot.BOX_REQUEST},
                {"from": "gpt", "value": "[0.125, 0.375, 0.375, 0.625]"},        # padded to a square: not plain
                {"from": "human", "value": "<image>"}, {"from": "gpt", "value": answer}]}


def viscot(folder, records=None):
    (folder / "benchmark").mkdir(parents=True)
    (folder / "benchmark" / "vsr.json").write_text(json.dumps(records or [visual_cot_record(n) for n in (0, 4)]))
    for number in (0, 4):
        write_image(folder / "cot" / "vsr" / f"{number}.jpg", number, size=(16, 12))
    return folder


def test_visual_cot_box_is_the_one_in_pixels(tmp_path):
    benchmark = load("visual_cot", viscot(tmp_path), any_count=True, sources=["vsr"], prompts="lvr")
    sample = benchmark[1]
    assert sample.boxes == ((2 / 16, 3 / 12, 6 / 16, 6 / 12),)
    assert sample.question == "What is under the couch?\nProvide a short and direct response."
    assert (sample.id, sample.answer, sample.letter, sample.category) == ("vsr/4", "teddy bear", None, "vsr")
    assert number_of(load_image(sample.images[0])) == 4


def test_visual_cot_answers_are_judged_as_text(tmp_path):
    row = load("visual_cot", viscot(tmp_path), any_count=True, sources=["vsr"]).rows[0]
    assert scoring.judge(row, "<answer> A Teddy Bear. </answer>", "strict_mapping") == ("teddy bear", True)
    assert scoring.judge(row, "<answer> bear </answer>", "first_character") == ("bear", False)


@pytest.mark.parametrize("record, message", [
    (visual_cot_record(0, box="[2, 3, 6]"), r"vsr.json: record 0: image is .*expected \[path"),
    (visual_cot_record(0, box="[2, x, 6, 6]"), r"vsr.json: record 0: image is"),
    (visual_cot_record(0) | {"image": ["cot/vsr/0.jpg"]}, r"vsr.json: record 0: image is"),
    (visual_cot_record(0) | {"conversations": []}, "conversations has 0 turns, expected human, gpt, human, gpt"),
    (visual_cot_record(0, answer=" "), "answer is '', expected both"),
    (visual_cot_record(7), r"1 image files are missing: .*7.jpg"),
])
def test_visual_cot_refuses_a_broken_record(tmp_path, record, message):
    with pytest.raises(BenchmarkError, match=message):
        load("visual_cot", viscot(tmp_path, [record]), any_count=True, sources=["vsr"])


def test_visual_cot_counts_and_sources_are_checked(tmp_path):
    viscot(tmp_path)
    with pytest.raises(BenchmarkError, match="vsr has 2 questions, expected 404"):
        load("visual_cot", tmp_path, sources=["vsr"])
    with pytest.raises(BenchmarkError, match="index file .*cub.json is missing"):
        load("visual_cot", tmp_path)
    with pytest.raises(BenchmarkError, match="no source 'coco', expected some of cub, docvqa"):
        load("visual_cot", tmp_path, sources=["coco"])


GOOD = {"image": "photos/1.jpg", "question": "What colour is the cup?", "options": ["red", "blue"], "answer": "(b)",
        "boxes": [[0.1, 0.2, 0.4, 0.5]], "category": "colour", "group": "cup", "cycle": 1}
OPEN = {"id": "7", "images": ["photos/1.jpg", "photos/2.jpg"], "question": "What is it?", "answer": "a cup"}


def own_set(folder, *records):
    for number in (1, 2):
        write_image(folder / "photos" / f"{number}.jpg", number)
    write_jsonl(folder / "mine.jsonl", records)
    return folder / "mine.jsonl"


def test_a_users_jsonl_is_read_as_documented(tmp_path):
    benchmark = load("jsonl", own_set(tmp_path, GOOD, OPEN))
    lettered, open_question = benchmark[0], benchmark[1]
    assert (lettered.id, lettered.letter, lettered.answer, lettered.category) == ("1", "B", "blue", "colour")
    assert lettered.boxes == ((0.1, 0.2, 0.4, 0.5),)
    assert lettered.question == ("What colour is the cup?\nOptions:\nA. red\nB. blue\n"
                                 "\nAnswer with the option's letter from the given choices directly.")
    assert (benchmark.rows[0].group, benchmark.rows[0].cycle) == ("cup", "1")
    assert (open_question.id, open_question.letter, open_question.answer) == ("7", None, "a cup")
    assert [number_of(load_image(image)) for image in open_question.images] == [1, 2]


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize("record, message", [
    (GOOD | {"awnser": "A"}, "mine.jsonl:1: unknown field 'awnser', expected some of id, image"),
    (without("answer"), "mine.jsonl:1: no field 'answer'"),
    (without("image"), "expected either image"),
    (GOOD | {"images": ["photos/2.jpg"]}, "expected either image"),
    (GOOD | {"image": "photos/3.jpg"}, r"1 image files are missing: .*3.jpg"),
    (GOOD | {"answer": "C"}, "answer is 'C', expected one of A, B"),
    (GOOD | {"answer": "blue"}, "answer is 'blue', expected one of A, B"),
    (GOOD | {"options": ["red"]}, "expected at least two texts"),
    (GOOD | {"boxes": [[10, 20, 40, 50]]}, "looks like pixels"),
    (GOOD | {"boxes": [[0.4, 0.2, 0.1, 0.5]]}, "no area"),
    (GOOD | {"question": " "}, "question is empty"),
    ([1], "mine.jsonl:1: expected a JSON object, found a list"),
])
def test_a_broken_line_of_a_users_jsonl_is_refused_by_number(tmp_path, record, message):
    with pytest.raises(BenchmarkError, match=message):
        load("jsonl", own_set(tmp_path, record))


def test_a_users_jsonl_must_exist(tmp_path):
    with pytest.raises(BenchmarkError, match="is not a file, expected a jsonl file"):
        load("jsonl", tmp_path)


@pytest.mark.parametrize("name", list(SCENES))
def test_generated_scenes_pass_through_unchanged(name):
    benchmark = load(name, size=4)
    source = SCENES[name](size=4, split="test")
    for i in range(4):
        ours, theirs = benchmark[i], source[i]
        assert (ours.id, ours.question, ours.letter, ours.boxes) == (theirs.id, theirs.question, theirs.letter,
                                                                     theirs.boxes)
        np.testing.assert_array_equal(ours.images[0], theirs.images[0])
        assert benchmark.rows[i].id == ours.id and benchmark.rows[i].letter == ours.letter
    turned = pickle.loads(pickle.dumps(benchmark.subset([3, 1])))
    assert [row.id for row in turned.rows] == [source[3].id, source[1].id]


@pytest.mark.parametrize("name, folder, options, message", [
    ("digits", None, {}, "no benchmark 'digits', expected one of vstar, .*digit_search, rotation"),
    ("vstar", None, {}, "vstar: no folder given"),
    ("digit_search", "somewhere", {}, "folder is 'somewhere', expected none"),
    ("digit_search", None, {"colour": 1}, "digit_search: no option 'colour', expected size, split"),
    ("vstar", "somewhere", {"order": "index"}, "vstar: no option 'order', expected boxes"),
    ("blink14", "somewhere", {"tasks": ()}, "blink14: no option 'tasks', expected none"),
])
def test_wrong_names_and_options_are_refused(name, folder, options, message):
    with pytest.raises(BenchmarkError, match=message):
        load(name, folder, **options)


def test_every_benchmark_has_a_clean_and_an_lvr_prompt_rule_and_aggregation():
    from lvr_jax.evaluation import extraction, prompts

    for harness in ("lvr", "prism", "clean"):
        for entry in BENCHMARKS.values():
            prompts.check(harness, entry.family)
            assert extraction.rule_name(harness, entry.family) in extraction.RULES
            assert all(name in scoring.AGGREGATIONS for name in scoring.reported(harness, entry.family))


def test_a_prompt_that_a_harness_does_not_have_is_refused_at_load(tmp_path):
    with pytest.raises(BenchmarkError, match="harness 'own' has no prompt for 'jsonl', only for vstar, mmvp, blink"):
        load("jsonl", own_set(tmp_path, GOOD), prompts="own")
