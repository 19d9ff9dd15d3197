"""MMVP is read by Index, with the pair structure and the answer key that were asked for."""

import csv
import pickle

import pytest
from benchmark_folders import number_of, png, write_image, write_parquet

from lvr_jax.data.images import load_image
from lvr_jax.evaluation.benchmarks import BenchmarkError, load
from lvr_jax.evaluation.benchmarks.mmvp import image_of

COLUMNS = ["Index", "Question", "Options", "Correct Answer"]


def question(index):
    return {"Index": str(index), "Question": f"Is door {(index + 1) // 2} open (a) or not?",
            "Options": "(a) Open (b) Closed", "Correct Answer": "(a)" if index % 2 else "(b)"}


def write_questions(path, records, columns=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows([record[column] for column in columns] for record in records)


def mmvp(folder, count=12, records=None):
    records = [question(index) for index in range(1, count + 1)] if records is None else records
    write_questions(folder / "Questions.csv", records)
    for index in range(1, count + 1):
        write_image(folder / "MMVP Images" / f"{index}.jpg", index)
    return folder


def parquet(folder, count=12, order=None):
    records = [question(index) | {"Index": index, "image": {"bytes": png(index), "path": f"{index}.jpg"}}
               for index in order or range(1, count + 1)]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", records, row_group_size=5)
    return folder


def shown(benchmark):
    return [number_of(load_image(benchmark[i].images[0])) for i in range(len(benchmark))]


@pytest.mark.parametrize("make", [mmvp, parquet])
def test_images_meet_questions_by_index(tmp_path, make):
    benchmark = load("mmvp", make(tmp_path), any_count=True)
    assert [row.id for row in benchmark.rows] == [str(i) for i in range(1, 13)]
    assert shown(benchmark) == list(range(1, 13))


def test_rows_are_found_by_index_and_not_by_place(tmp_path):
    mmvp(tmp_path, records=[question(index) for index in (3, 1, 4, 2, *range(5, 13))])
    assert shown(load("mmvp", tmp_path, any_count=True)) == list(range(1, 13))
    parquet(tmp_path / "other", order=(3, 1, 4, 2, *range(5, 13)))
    assert shown(load("mmvp", tmp_path / "other", any_count=True)) == list(range(1, 13))


@pytest.mark.parametrize("make", [mmvp, parquet])
def test_lexicographic_order_shows_the_images_that_the_paper_showed(tmp_path, make):
    benchmark = load("mmvp", make(tmp_path), any_count=True, order="lexicographic")
    assert shown(benchmark) == [1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [row.id for row in benchmark.rows] == [str(i) for i in range(1, 13)]     # questions stay where they were


def test_lexicographic_order_of_300_leaves_one_image_in_its_place():
    order = [image_of(index, 300, "lexicographic") for index in range(1, 301)]
    assert sorted(order) == list(range(1, 301))
    assert [i for i, image in enumerate(order, start=1) if i == image] == [1]
    assert sum((i - 1) // 2 == (image - 1) // 2 for i, image in enumerate(order, start=1)) == 1


@pytest.mark.parametrize("key, letters", [("corrected", "BABA"), ("original", "ABAB")])
@pytest.mark.parametrize("as_distributed", ["original", "corrected"])
def test_each_key_holds_whatever_state_the_file_is_in(tmp_path, key, letters, as_distributed):
    records = [question(index) for index in range(1, 301)]
    if as_distributed == "corrected":
        for index in (99, 100, 279, 280):
            records[index - 1]["Correct Answer"] = "(b)" if index % 2 else "(a)"
    rows = load("mmvp", mmvp(tmp_path, 300, records), key=key).rows
    assert "".join(rows[index - 1].letter for index in (99, 100, 279, 280)) == letters
    assert rows[0].letter == "A" and rows[1].letter == "B" and rows[1].answer == "Closed"


def test_rows_2k_minus_1_and_2k_are_a_pair(tmp_path):
    rows = load("mmvp", mmvp(tmp_path), any_count=True).rows
    assert [row.group for row in rows[:4]] == ["pair 1", "pair 1", "pair 2", "pair 2"]


PROMPTS = [
    # LVR's replacement of (a) and (b) runs over the question too.
    ("lvr", "Is door 1 open A. or not?\nOptions:\nA. Open B. Closed"
            "\nAnswer with the option's letter from the given choices directly."),
    ("own", "Is door 1 open (a) or not? (a) Open (b) Closed"),
    ("lmms_eval", "Is door 1 open (a) or not?\nA. Open\nB. Closed"
                  "\nAnswer with the option's letter from the given choices directly."),
    ("vlmevalkit", "Question: Is door 1 open (a) or not?\nOptions:\nA. Open\nB. Closed"
                   "\nPlease select the correct answer from the options above."),
]


@pytest.mark.parametrize("prompts, text", PROMPTS)
def test_prompt_is_the_harness_text_to_the_letter(tmp_path, prompts, text):
    assert load("mmvp", mmvp(tmp_path), any_count=True, prompts=prompts)[0].question == text


def change(index, **fields):
    def records():
        made = [question(i) for i in range(1, 13)]
        made[index - 1] |= fields
        return made
    return records


TRAPS = [
    (change(3, Index="2"), r"Questions.csv:4: Index 2 occurs twice"),
    (change(3, Index="13"), "Index holds 13, expected 1 to an even number without gaps"),
    (change(3, Index="three"), r"Questions.csv:4: Index is 'three', expected a whole number"),
    (change(3, **{"Correct Answer": "(c)"}), r"Questions.csv:4: answer is '\(c\)', expected one of A, B"),
    (change(3, Options="Open or closed"), r"Questions.csv:4: .* lists no options, expected at least \(a\)"),
    (lambda: [question(i) for i in range(1, 12)], "11 values, expected 1 to an even number"),
]


@pytest.mark.parametrize("records, message", TRAPS)
def test_a_broken_index_is_refused_by_line(tmp_path, records, message):
    with pytest.raises(BenchmarkError, match=message):
        load("mmvp", mmvp(tmp_path, records=records()), any_count=True)


def test_missing_parts_are_named(tmp_path):
    mmvp(tmp_path)
    with pytest.raises(BenchmarkError, match="MMVP has 12 questions, expected 300"):
        load("mmvp", tmp_path)
    (tmp_path / "MMVP Images" / "7.jpg").unlink()
    with pytest.raises(BenchmarkError, match=r"1 image files are missing: .*7.jpg"):
        load("mmvp", tmp_path, any_count=True)
    (tmp_path / "MMVP Images").rename(tmp_path / "pictures")
    with pytest.raises(BenchmarkError, match="no image folder in .* expected 'MMVP Images' or 'MMVP_Images'"):
        load("mmvp", tmp_path, any_count=True)
    (tmp_path / "Questions.csv").unlink()
    with pytest.raises(BenchmarkError, match="index file .*Questions.csv is missing"):
        load("mmvp", tmp_path, any_count=True)
    with pytest.raises(BenchmarkError, match="nowhere is not a folder"):
        load("mmvp", tmp_path / "nowhere", any_count=True)


def test_a_missing_column_and_a_short_row_are_named(tmp_path):
    mmvp(tmp_path)
    write_questions(tmp_path / "Questions.csv", [question(1), question(2)], ["Index", "Question", "Options"])
    with pytest.raises(BenchmarkError, match="Questions.csv: no column Correct Answer, found Index, Question, Options"):
        load("mmvp", tmp_path, any_count=True)
    for cells in (b"1,Is it?,(a) x (b) y,\xff", b'1,"' + b"x" * 200_000 + b'",(a) x (b) y,(a)'):
        (tmp_path / "Questions.csv").write_bytes(b"Index,Question,Options,Correct Answer\n" + cells + b"\n")
        with pytest.raises(BenchmarkError, match="Questions.csv.*(not UTF-8|not CSV)"):
            load("mmvp", tmp_path, any_count=True)
    (tmp_path / "Questions.csv").write_text("Index,Question,Options,Correct Answer\n1,Is it?\n")
    with pytest.raises(BenchmarkError, match="Questions.csv:2: row has fewer cells than the header"):
        load("mmvp", tmp_path, any_count=True)


def test_the_published_header_with_a_small_l_is_index(tmp_path):
    mmvp(tmp_path)
    file = tmp_path / "Questions.csv"
    file.write_text(file.read_text().replace("Index", "lndex", 1))
    assert shown(load("mmvp", tmp_path, any_count=True)) == list(range(1, 13))


def test_images_folder_may_have_an_underscore(tmp_path):
    mmvp(tmp_path)
    (tmp_path / "MMVP Images").rename(tmp_path / "MMVP_Images")
    assert shown(load("mmvp", tmp_path, any_count=True)) == list(range(1, 13))


def test_unknown_order_or_key_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="order='random', key='corrected', expected order index or lexicographic"):
        load("mmvp", mmvp(tmp_path), any_count=True, order="random")


def test_parquet_images_can_be_read_backwards_in_another_process_state(tmp_path):
    benchmark = load("mmvp", parquet(tmp_path), any_count=True)
    assert number_of(load_image(benchmark[6].images[0])) == 7              # opens a cursor inside a row group
    copy = pickle.loads(pickle.dumps(benchmark))
    numbers = [number_of(load_image(copy[i].images[0])) for i in (11, 0, 4, 5, 3)]
    assert numbers == [12, 1, 5, 6, 4]


@pytest.mark.parametrize("text", [
    "Index,Question,Options,Correct Answer\n1," + "w" * 200_000 + ",(a) x (b) y,(a)\n",
    "Index;Question;Options;Correct Answer\n1;What?;(a) x (b) y;(a)\n",
    "", "\0", "Index,Question\n",
])  # fmt: skip
def test_a_table_that_is_none_is_one_line_that_names_the_file(tmp_path, text):
    mmvp(tmp_path, count=2)
    (tmp_path / "Questions.csv").write_text(text)
    with pytest.raises(BenchmarkError, match=r"^[^\n]*Questions\.csv[^\n]{,300}$"):
        load("mmvp", tmp_path, any_count=True)
