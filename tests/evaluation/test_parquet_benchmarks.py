"""HR-Bench, MME-RealWorld-Lite and VisualPuzzles are read from hub shards, base64 images and traps included."""

import base64
import concurrent.futures
import time

import pytest
from benchmark_folders import number_of, png, write_parquet

from lvr_jax.data.images import load_image
from lvr_jax.data.sample import DataError
from lvr_jax.evaluation import extraction
from lvr_jax.evaluation.benchmarks import BenchmarkError, load
from lvr_jax.evaluation.benchmarks.tables import ParquetImages

OPTIONS = ("red", "blue", "green", "grey")


def base64_png(number):
    return base64.b64encode(png(number)).decode()


def hrbench(folder, questions=3, twins=True, change=lambda records: records):
    """Cycle by cycle, as distributed; with `twins`, two questions share words and options but not the image."""
    records = []
    for cycle in range(4):
        options = OPTIONS[cycle:] + OPTIONS[:cycle]
        for question in range(questions):
            records.append({
                "index": len(records), "image": base64_png(10 * question + cycle),
                "question": "What colour?" if twins and question < 2 else f"What colour is cup {question}?",
                **dict(zip("ABCD", options)), "answer": "ABCD"[options.index("blue")],
                "category": "single" if question < questions - questions // 2 else "cross",
                "cycle_category": f"cycle_{cycle}"})
    write_parquet(folder / "hr_bench_4k.parquet", change(records), row_group_size=5)
    return folder


def test_hrbench_joins_the_four_orders_of_a_question(tmp_path):
    benchmark = load("hrbench4k", hrbench(tmp_path), any_count=True)
    groups = {}
    for i, row in enumerate(benchmark.rows):
        groups.setdefault(row.group, []).append(number_of(load_image(benchmark[i].images[0])))
    assert sorted(groups.values()) == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert {row.answer for row in benchmark.rows} == {"blue"}
    assert [row.letter for row in benchmark.rows[::3]] == ["B", "A", "D", "C"]


def test_hrbench_prompts_are_the_harness_texts(tmp_path):
    hrbench(tmp_path)
    lmms = load("hrbench4k", tmp_path, any_count=True, prompts="lmms_eval")[0].question
    assert lmms == "What colour?\nA. red\nB. blue\nC. green\nD. grey\nAnswer the option letter directly."
    vlmevalkit = load("hrbench4k", tmp_path, any_count=True, prompts="vlmevalkit")[0].question
    assert vlmevalkit == ("Question: What colour?\nOptions:\nA. red\nB. blue\nC. green\nD. grey\n"
                          "Please select the correct answer from the options above.")


def test_hrbench_of_full_size_has_800_rows(tmp_path):
    assert len(load("hrbench4k", hrbench(tmp_path, questions=200, twins=False))) == 800


def set_field(place, name, value):
    def change(records):
        records[place][name] = value
        return records
    return change


@pytest.mark.parametrize("change, message", [
    (lambda records: records[:-1], "is there 3 times, expected each of the 4 cyclic orders once"),
    (lambda records: records[:600], "cycle_category holds cycle_0, cycle_1, cycle_2, expected 4 cyclic orders"),
    (set_field(3, "category", "triple"), r"hr_bench_4k.parquet:3: category is 'triple', expected one of single, cross"),
    (set_field(3, "answer", "E"), r"hr_bench_4k.parquet:3: answer is 'E', expected one of A, B, C, D"),
    (set_field(3, "A", None), r"hr_bench_4k.parquet:3: A is None, expected str"),
    # the answer stays, but the order is no turn of the others
    (lambda records: set_field(3, "C", "grey")(set_field(3, "D", "green")(records)), "expected each of the 4 cyclic"),
])
def test_hrbench_refuses_a_broken_file(tmp_path, change, message):
    with pytest.raises(BenchmarkError, match=message):
        load("hrbench4k", hrbench(tmp_path, questions=200, twins=False, change=change))


def test_hrbench_counts_and_resolution_are_checked(tmp_path):
    hrbench(tmp_path)
    with pytest.raises(BenchmarkError, match="single has 8 questions, expected 400"):
        load("hrbench4k", tmp_path)
    with pytest.raises(BenchmarkError, match="index file .*hr_bench_8k.parquet is missing"):
        load("hrbench8k", tmp_path)


def test_parquet_images_that_are_not_base64_are_named(tmp_path):
    benchmark = load("hrbench4k", hrbench(tmp_path, change=set_field(4, "image", "no*base64")), any_count=True)
    assert number_of(load_image(benchmark[3].images[0])) == 1
    with pytest.raises(BenchmarkError, match="hr_bench_4k.parquet: item 4: image is not base64"):
        benchmark[4]


def test_parquet_images_may_be_read_by_many_threads_in_any_order(tmp_path, monkeypatch):
    benchmark = load("hrbench4k", hrbench(tmp_path), any_count=True)
    expected = [10 * question + cycle for cycle in range(4) for question in range(3)]
    order = [7, 0, 11, 3, 4, 2, 9, 1, 10, 5, 8, 6]
    inside, together, read = [], [], ParquetImages._read

    def slow_read(self, *place):
        inside.append(place)
        time.sleep(0.005)                            # long enough for another thread to come in, if it may
        together.append(len(inside))
        inside.remove(place)
        return read(self, *place)

    monkeypatch.setattr(ParquetImages, "_read", slow_read)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda i: number_of(load_image(benchmark[i].images[0])), order))
    assert seen == [expected[i] for i in order]
    assert set(together) == {1}                      # one cursor, one reader at a time


WRITTEN = [f"({letter}) {text}" for letter, text in zip("ABCDE", (*OPTIONS, "The image does not feature the cup."))]


def mme(folder, **fields):
    for shard in range(2):
        write_parquet(folder / "data" / f"train-{shard:05d}-of-00002.parquet", [
            {"index": f"perception/cup/{2 * shard + k}", "bytes": base64_png(2 * shard + k), "question": "What colour?",
             "multi-choice options": WRITTEN, "answer": "E", "category": "Perception/Remote Sensing",
             "l2-category": "color"} | fields for k in range(2)])
    return folder


def test_mme_realworld_reads_all_shards_in_order(tmp_path):
    benchmark = load("mme_realworld_lite", mme(tmp_path), any_count=True)
    assert [number_of(load_image(benchmark[i].images[0])) for i in range(4)] == [0, 1, 2, 3]
    sample = benchmark[3]
    assert (sample.letter, sample.options[1]) == ("E", "blue")
    assert sample.answer == "The image does not feature the cup."


@pytest.mark.parametrize("prompts, ending", [
    ("lmms_eval", "of the correct option.\nThe best answer is: "),
    ("vlmevalkit", "of the correct option. \nThe best answer is:"),
])
def test_mme_realworld_prompts_are_the_harness_texts(tmp_path, prompts, ending):
    text = load("mme_realworld_lite", mme(tmp_path), any_count=True, prompts=prompts)[0].question
    assert text.startswith("What colour? The choices are listed below:\n(A) red\n(B) blue\n(C) green\n(D) grey\n(E) ")
    assert text.endswith("cup.\nSelect the best answer to the above multiple-choice question based on the image. "
                         "Respond with only the letter (A, B, C, D, or E) " + ending)


@pytest.mark.parametrize("fields, message", [
    ({"category": "Guessing/Cups"}, "category is 'Guessing/Cups', expected Perception/... or Reasoning/..."),
    ({"multi-choice options": ["red", "blue"]}, r"option 'red', expected it to begin with \(A\)"),
    ({"answer": "F"}, "answer is 'F', expected one of A, B, C, D, E"),
])
def test_mme_realworld_refuses_a_broken_row(tmp_path, fields, message):
    with pytest.raises(BenchmarkError, match=r"train-00000-of-00002.parquet:0: " + message):
        load("mme_realworld_lite", mme(tmp_path, **fields), any_count=True)


def test_mme_realworld_counts_are_checked_and_an_empty_folder_is_named(tmp_path):
    with pytest.raises(BenchmarkError, match=r"mme_realworld_lite: no \*.parquet in"):
        load("mme_realworld_lite", tmp_path)
    with pytest.raises(BenchmarkError, match="MME-RealWorld-Lite has 4 questions, expected 1919"):
        load("mme_realworld_lite", mme(tmp_path))


def puzzles(folder, **fields):
    write_parquet(folder / "train.parquet", [
        {"id": 1, "image": {"bytes": png(1), "path": None}, "question": "Which is next? ", "options": list(OPTIONS),
         "answer": "C", "category": "Inductive"} | fields,
        {"id": 2, "image": {"bytes": png(2), "path": None}, "question": "Which fits?", "options": None,
         "answer": "D", "category": "spatial"}])
    return folder


def test_visualpuzzles_may_have_its_options_in_the_image(tmp_path):
    benchmark = load("visualpuzzles", puzzles(tmp_path), any_count=True, prompts="lmms_eval")
    assert benchmark[0].question == ("Question: Which is next?\nOptions:\n(A) red\n(B) blue\n(C) green\n(D) grey\n"
                                     "Answer the question with the option's letter from the given choices directly.")
    assert "\nOptions: Choose from (A) (B) (C) (D) in the image.\n" in benchmark[1].question
    assert benchmark.rows[1].letter == "D" and benchmark.rows[1].options == ()
    assert extraction.extract("strict_mapping", "(D)", benchmark.rows[1].choices) == "D"
    assert load("visualpuzzles", tmp_path, any_count=True, prompts="clean")[1].question == \
        "Which fits?\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize("fields, message", [
    ({"category": "magic"}, "train.parquet:0: category is 'magic'"),
    ({"options": ["red", "blue"]}, "train.parquet:0: 2 options, expected four or null"),
    ({"answer": None}, "train.parquet:0: answer is None, expected str"),
])
def test_visualpuzzles_refuses_a_broken_row(tmp_path, fields, message):
    with pytest.raises(BenchmarkError, match=message):
        load("visualpuzzles", puzzles(tmp_path, **fields), any_count=True)


def test_visualpuzzles_counts_are_checked(tmp_path):
    with pytest.raises(BenchmarkError, match="VisualPuzzles has 2 questions, expected 1168"):
        load("visualpuzzles", puzzles(tmp_path))


def test_a_picture_that_is_no_base64_is_named(tmp_path):
    hrbench(tmp_path, change=lambda records: [record | {"image": "é" * 8} for record in records])
    with pytest.raises(DataError, match=r"^[^\n]*parquet[^\n]*image") as error:
        benchmark = load("hrbench4k", tmp_path, any_count=True)
        [benchmark[i] for i in range(len(benchmark))]
    assert "\n" not in str(error.value)
