"""V*Bench is read as its hub layout says, traps included."""

import json
import pickle

import pytest
from benchmark_folders import number_of, write_image, write_jsonl

from lvr_jax.data.images import load_image
from lvr_jax.evaluation.benchmarks import BenchmarkError, load

INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."
TEXT = {
    "direct_attributes": "What is the material of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather",
    "relative_position": "Is the dog left of the (red) cat?\n(A) left\n(B) right",
}
ANNOTATION = {"target_object": ["glove"], "bbox": [[2, 3, 4, 3]], "question": "What is the material of the glove?",
              "options": ["The glove is made of rubber.", "... of cotton.", "... of kevlar.", "... of leather."]}


def vstar(folder, direct=2, relative=1):
    records = []
    for number in range(direct + relative):
        category = "direct_attributes" if number < direct else "relative_position"
        image = f"{category}/sa_{number}.jpg"
        write_image(folder / image, number, size=(16, 12))
        (folder / image).with_suffix(".json").write_text(json.dumps(ANNOTATION))
        records.append({"image": image, "text": TEXT[category] + INSTRUCTION, "category": category,
                        "question_id": str(number), "label": "B"})
    write_jsonl(folder / "test_questions.jsonl", records)
    return folder


def test_a_full_folder_has_115_and_76_questions(tmp_path):
    benchmark = load("vstar", vstar(tmp_path, 115, 76))
    assert len(benchmark) == 191
    assert [row.category for row in benchmark.rows].count("relative_position") == 76


def test_item_holds_question_options_letter_and_its_own_image(tmp_path):
    sample = load("vstar", vstar(tmp_path), any_count=True)[1]
    assert (sample.id, sample.letter, sample.answer, sample.category) == ("1", "B", "cotton", "direct_attributes")
    assert sample.options == ("rubber", "cotton", "kevlar", "leather")
    assert number_of(load_image(sample.images[0])) == 1


def test_boxes_are_x_y_width_height_in_pixels(tmp_path):
    sample = load("vstar", vstar(tmp_path), any_count=True)[0]
    assert sample.boxes == ((2 / 16, 3 / 12, 6 / 16, 6 / 12),)         # read as corners this would be another box


def test_a_parenthesis_in_the_question_is_no_option(tmp_path):
    row = load("vstar", vstar(tmp_path), any_count=True).rows[2]
    assert row.question == "Is the dog left of the (red) cat?" and row.options == ("left", "right")


def test_likelihood_options_are_the_annotation_sentences_right_one_first(tmp_path):
    row = load("vstar", vstar(tmp_path), any_count=True).rows[0]
    assert row.texts["likelihood_options"] == tuple(ANNOTATION["options"])


@pytest.mark.parametrize("prompts, times", [("lvr", 2), ("prism", 2), ("clean", 1), ("lmms_eval", 2), ("own", 0)])
def test_each_harness_gives_the_instruction_as_often_as_published(tmp_path, prompts, times):
    question = load("vstar", vstar(tmp_path), any_count=True, prompts=prompts)[0].question
    assert question.count(INSTRUCTION.strip()) == times


def test_benchmark_is_picklable_and_subsets_keep_the_pictures(tmp_path):
    benchmark = load("vstar", vstar(tmp_path), any_count=True)
    last = pickle.loads(pickle.dumps(benchmark.subset([2, 0]))).subset([0])
    assert len(last) == 1 and last[0].id == "2" and number_of(load_image(last[0].images[0])) == 2


def broken(change):
    """A folder of three questions to which `change` was done."""
    def make(folder):
        vstar(folder)
        change(folder)
        return folder
    return make


def rewrite(field, value):
    def change(folder):
        index = folder / "test_questions.jsonl"
        records = [json.loads(line) for line in index.read_text().splitlines()]
        records[1][field] = value
        write_jsonl(index, records)
    return change


TRAPS = [
    (lambda f: (f / "test_questions.jsonl").unlink(), r"index file .*test_questions.jsonl is missing"),
    (lambda f: (f / "direct_attributes/sa_1.jpg").unlink(), r"1 image files are missing: .*sa_1.jpg"),
    (lambda f: (f / "direct_attributes/sa_1.json").unlink(), r"sa_1.json is missing, .*boxes=False does without"),
    (lambda f: (f / "direct_attributes/sa_1.json").write_text("{"), r"sa_1.json: not JSON"),
    (lambda f: (f / "direct_attributes/sa_1.json").write_text('{"bbox": [[1, 2, 3]], "options": []}'),
     r"sa_1.json: bbox holds \[1, 2, 3\], expected x, y, w, h in pixels"),
    (lambda f: (f / "direct_attributes/sa_1.json").write_text('{"bbox": [], "options": []}'), "bbox is empty"),
    (rewrite("category", "OCR"), r"test_questions.jsonl:2: category is 'OCR', expected one of direct_attributes"),
    (rewrite("label", "E"), r"test_questions.jsonl:2: answer is 'E', expected one of A, B, C, D"),
    (rewrite("label", None), r"test_questions.jsonl:2: label is None, expected str"),
    (rewrite("text", "What?"), r"test_questions.jsonl:2: 'What\?' lists no options"),
    (rewrite("question_id", "0"), r"id '0' occurs twice"),
    (lambda f: (f / "test_questions.jsonl").write_text('{"image": 3\n'), r"test_questions.jsonl:1: not JSON"),
    (lambda f: (f / "test_questions.jsonl").write_text("\n"), "no questions found"),
]


@pytest.mark.parametrize("change, message", TRAPS)
def test_a_broken_folder_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(BenchmarkError, match=message) as caught:
        load("vstar", broken(change)(tmp_path), any_count=True)
    assert "\n" not in str(caught.value)


def test_a_wrong_count_is_refused_unless_a_subset_is_wanted(tmp_path):
    vstar(tmp_path, 114, 76)
    with pytest.raises(BenchmarkError, match="direct_attributes has 114 questions, expected 115"):
        load("vstar", tmp_path)
    assert len(load("vstar", tmp_path, any_count=True)) == 190


@pytest.mark.parametrize("box, message", [
    ([2, 3, 0, 3], "no area"),
    ([20, 3, 4, 3], "wholly outside the image"),
    ([0.1, 0.2, 0.3, 0.3], "looks normalised"),
])
def test_a_bad_box_names_its_image(tmp_path, box, message):
    vstar(tmp_path)
    (tmp_path / "direct_attributes/sa_0.json").write_text(json.dumps(ANNOTATION | {"bbox": [box]}))
    benchmark = load("vstar", tmp_path, any_count=True)
    with pytest.raises(BenchmarkError, match=rf"sa_0.jpg: .*{message}"):
        benchmark[0]


def test_a_box_over_the_edge_is_clipped_as_the_official_code_does(tmp_path):
    vstar(tmp_path)
    (tmp_path / "direct_attributes/sa_0.json").write_text(json.dumps(ANNOTATION | {"bbox": [[12, 6, 8, 8]]}))
    assert load("vstar", tmp_path, any_count=True)[0].boxes == ((0.75, 0.5, 1.0, 1.0),)


def test_boxes_can_be_done_without(tmp_path):
    vstar(tmp_path)
    for path in tmp_path.glob("*/*.json"):
        path.unlink()
    assert load("vstar", tmp_path, any_count=True, boxes=False)[0].boxes == ()


def test_unreadable_image_is_an_error_that_names_it(tmp_path):
    vstar(tmp_path)
    (tmp_path / "direct_attributes/sa_0.jpg").write_bytes(b"no picture")
    benchmark = load("vstar", tmp_path, any_count=True)
    with pytest.raises(BenchmarkError, match="sa_0.jpg: not a readable image"):
        benchmark[0]
