"""BLINK is read the same from parquet shards and from extracted records."""

import pytest
from benchmark_folders import number_of, png, write_image, write_jsonl, write_parquet

from lvr_jax.data.images import load_image
from lvr_jax.evaluation.benchmarks import BenchmarkError, blink, load

IMAGES = {"Jigsaw": 3, "Counting": 1}                # images a question


def record(task, number):
    choices = ["the second image", "the third image"] if task == "Jigsaw" else ["0", "3", "2", "1"]
    return {"idx": f"val_{task}_{number}", "sub_task": task, "question": f"Which one, {number}?", "choices": choices,
            "answer": "(B)", "prompt": f"Look.\nWhich one, {number}?\n(A) {choices[0]}\n(B) {choices[1]}\n",
            "explanation": None}


def parquet(folder, tasks=blink.LVR_TASKS, count=2):
    for place, task in enumerate(tasks):
        records = []
        for number in range(1, count + 1):
            cells = {f"image_{k}": {"bytes": png(100 * place + 10 * number + k), "path": None}
                     if k <= IMAGES.get(task, 1) else None for k in (1, 2, 3, 4)}
            records.append(record(task, number) | cells)
        write_parquet(folder / task / "val-00000-of-00001.parquet", records)
    return folder


def extracted(folder, tasks=blink.LVR_TASKS, count=2):
    for place, task in enumerate(tasks):
        records = []
        for number in range(1, count + 1):
            names = {f"image_{k}": f"images/{number}_{k}.jpg" for k in range(1, IMAGES.get(task, 1) + 1)}
            for k, name in enumerate(names.values(), start=1):
                write_image(folder / task / "val" / name, 100 * place + 10 * number + k)
            records.append(record(task, number) | names)
        write_jsonl(folder / task / "val" / "records.jsonl", records)
    return folder


@pytest.mark.parametrize("make", [parquet, extracted])
def test_item_holds_all_its_images_in_order(tmp_path, make):
    benchmark = load("blink", make(tmp_path), any_count=True)
    jigsaw = benchmark[5]
    assert (jigsaw.id, jigsaw.category, jigsaw.letter) == ("val_Jigsaw_2", "Jigsaw", "B")
    assert [number_of(load_image(image)) for image in jigsaw.images] == [221, 222, 223]
    assert jigsaw.options == ("the second image", "the third image") and jigsaw.answer == "the third image"
    assert len(benchmark[0].images) == 1


def test_both_layouts_give_the_same_rows(tmp_path):
    one = load("blink", parquet(tmp_path / "parquet"), any_count=True)
    two = load("blink", extracted(tmp_path / "records"), any_count=True)
    assert one.rows == two.rows


def test_blink_is_the_five_of_lvr_and_blink14_is_all(tmp_path):
    parquet(tmp_path, blink.ALL_TASKS, count=1)
    assert [row.category for row in load("blink", tmp_path, any_count=True).rows] == \
        ["Counting", "IQ_Test", "Jigsaw", "Relative_Reflectance", "Spatial_Relation"]
    assert len(load("blink14", tmp_path, any_count=True)) == 14
    assert [row.category for row in load("blink", tmp_path, any_count=True, tasks=["Art_Style"]).rows] == ["Art_Style"]


def test_published_counts_add_up_to_697_and_1901():
    assert sum(blink.PUBLISHED[task] for task in blink.LVR_TASKS) == 697
    assert sum(blink.PUBLISHED.values()) == 1901


PROMPTS = [
    # Each option line ends in a newline, so that a blank line comes before the instruction.
    ("lvr", "Which one, 1?\nOptions:\nA. 0\nB. 3\nC. 2\nD. 1\n"
            "\nAnswer with the option's letter from the given choices directly."),
    ("own", "Look.\nWhich one, 1?\n(A) 0\n(B) 3\n"),
    ("lmms_eval", "Note: You only need to respond with A, B, C, D without providing any additional information.\n"
                  "Look.\nWhich one, 1?\n(A) 0\n(B) 3\n"),
    ("vlmevalkit", "Question: Which one, 1?\nOptions:\nA. 0\nB. 3\nC. 2\nD. 1"
                   "\nPlease select the correct answer from the options above."),
]


@pytest.mark.parametrize("prompts, text", PROMPTS)
def test_prompt_is_the_harness_text_to_the_letter(tmp_path, prompts, text):
    assert load("blink", parquet(tmp_path), any_count=True, prompts=prompts)[0].question == text


def test_own_prompt_disclaims_on_jigsaw_only(tmp_path):
    benchmark = load("blink", parquet(tmp_path), any_count=True, prompts="own")
    assert [row.category for i, row in enumerate(benchmark.rows) if benchmark[i].question.startswith("Disclaimer: ")] \
        == ["Jigsaw", "Jigsaw"]


def test_wrong_counts_missing_subtasks_and_unknown_ones_are_named(tmp_path):
    extracted(tmp_path)
    with pytest.raises(BenchmarkError, match="Counting has 2 questions, expected 120"):
        load("blink", tmp_path)
    with pytest.raises(BenchmarkError, match="has no folder for Art_Style, Forensic_Detection"):
        load("blink14", tmp_path, any_count=True)
    with pytest.raises(BenchmarkError, match="no subtask 'Count', expected some of Counting"):
        load("blink", tmp_path, any_count=True, tasks=["Count"])
    (tmp_path / "Jigsaw/val/images/1_2.jpg").unlink()
    with pytest.raises(BenchmarkError, match=r"1 image files are missing: .*1_2.jpg"):
        load("blink", tmp_path, any_count=True)
    (tmp_path / "Jigsaw/val/records.jsonl").unlink()
    with pytest.raises(BenchmarkError, match=r"Jigsaw has neither val-\*.parquet nor val/records.jsonl"):
        load("blink", tmp_path, any_count=True)


@pytest.mark.parametrize("fields, message", [
    ({"sub_task": "Art_Style"}, "records.jsonl:1: sub_task is 'Art_Style', expected one of Counting"),
    ({"answer": "hidden"}, "records.jsonl:1: answer is 'hidden', expected one of A, B, C, D"),
    ({"answer": "(E)"}, r"answer is '\(E\)', expected one of A, B, C, D"),
    ({"choices": None}, "choices is None, expected list"),
    ({"choices": [1, 2]}, "records.jsonl:1: .*choices"),
    ({"choices": [None, None]}, "records.jsonl:1: .*choices"),
    ({"choices": [["1"], ["2"]]}, "records.jsonl:1: .*choices"),
    ({"image_1": None}, "records.jsonl:1: no image_1"),
])
def test_a_bad_record_is_refused_by_line(tmp_path, fields, message):
    extracted(tmp_path)
    good = record("Counting", 1) | {"image_1": "images/1_1.jpg"}
    write_jsonl(tmp_path / "Counting/val/records.jsonl", [good | fields])
    with pytest.raises(BenchmarkError, match=message):
        load("blink", tmp_path, any_count=True)


def test_a_parquet_shard_without_a_column_is_refused_by_name(tmp_path):
    parquet(tmp_path)
    write_parquet(tmp_path / "Jigsaw" / "val-00000-of-00001.parquet", [{"idx": "1", "question": "Which?"}])
    with pytest.raises(BenchmarkError, match="no column sub_task, choices, answer, prompt, image_1, found idx"):
        load("blink", tmp_path, any_count=True)


def test_a_parquet_item_without_any_image_is_an_error(tmp_path):
    parquet(tmp_path)
    cells = dict.fromkeys(("image_2", "image_3", "image_4"))
    write_parquet(tmp_path / "Counting" / "val-00000-of-00001.parquet",
                  [record("Counting", 1) | {"image_1": None} | cells])
    benchmark = load("blink", tmp_path, any_count=True)
    with pytest.raises(BenchmarkError, match="item 0: no image in image_1, image_2, image_3, image_4"):
        benchmark[0]


def test_a_truncated_parquet_shard_is_named(tmp_path):
    parquet(tmp_path)
    shard = tmp_path / "Counting" / "val-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(BenchmarkError, match="val-00000-of-00001.parquet: not a readable parquet file"):
        load("blink", tmp_path, any_count=True)


def test_missing_pyarrow_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)      # makes its import fail
    with pytest.raises(BenchmarkError, match=r"reading parquet needs pyarrow: pip install 'lvr_jax\[parquet\]'"):
        load("blink", tmp_path, any_count=True)
