"""Reads MMVP: `Questions.csv` beside `MMVP Images/`, or parquet with an Index column; 300 rows, 150 pairs.

    MMVP/MMVP             Questions.csv (Index, Question, Options, Correct Answer), MMVP Images/1.jpg .. 300.jpg
    lmms-lab-eval/MMVP    *.parquet with the same columns and `image`

Two traps, both explicit arguments here:
* `order`: images belong to questions by Index. The paper's loader fell back to the hub's image folder, whose order is
  that of the file names as text (1, 10, 100, 101, ...), so that 299 of 300 questions met another image.
* `key`: two pairs have their answers swapped in the original key (Index 99/100 and 279/280).
"""

from __future__ import annotations

from pathlib import Path

from lvr_jax.evaluation.benchmarks.benchmark import Files, Pictures, check_images, existing_file, existing_folder
from lvr_jax.evaluation.benchmarks.tables import parquet_images, read_csv, read_parquet
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter, split_options

COUNT = 300
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
ALIASES = {"lndex": "Index"}          # the header of the copy that the authors published begins with a small L
IMAGE_FOLDERS = ("MMVP Images", "MMVP_Images")
# Gold letters of the disputed rows under each key (tsb0601/MMVP issues 14 and 30). Both keys are written over what
# the file says, because copies of either state are in circulation.
KEYS = {
    "original": {99: "A", 100: "B", 279: "A", 280: "B"},
    "corrected": {99: "B", 100: "A", 279: "B", 280: "A"},
}
ORDERS = ("index", "lexicographic")


def image_of(index: int, count: int, order: str) -> int:
    """The number of the image file that question `index` (1-based) is shown with."""
    return index if order == "index" else sorted(range(1, count + 1), key=lambda i: f"{i}.jpg")[index - 1]


def read(folder: str, name: str, any_count: bool, *, order: str = "index",
         key: str = "corrected") -> tuple[list[Row], Pictures]:
    """The 300 questions in the order of Index; row i of the CSV is found by its Index, not by its place."""
    if order not in ORDERS or key not in KEYS:
        raise BenchmarkError(f"{name}: order={order!r}, key={key!r}, expected order {' or '.join(ORDERS)}"
                             f" and key {' or '.join(KEYS)}")
    root = existing_folder(folder, name)
    shards = sorted(root.rglob("*.parquet"))
    if shards:
        records = read_parquet(shards, COLUMNS, ("image",))
    else:
        records = list(read_csv(existing_file(root / "Questions.csv", name), COLUMNS, ALIASES))

    rows: dict[int, Row] = {}
    places: dict[int, int] = {}
    for place, (where, record) in enumerate(records):
        row = _row(record, where, KEYS[key])
        index = int(row.id)
        if index in rows:
            raise BenchmarkError(f"{where}: Index {index} occurs twice, expected 1 to {len(records)} once each")
        rows[index], places[index] = row, place
    if not any_count:
        check_counts({"MMVP": len(rows)}, {"MMVP": COUNT}, name)
    odd = [index for index in rows if not 1 <= index <= len(rows)]
    if odd or len(rows) % 2:
        raise BenchmarkError(f"{name}: Index holds {odd[0] if odd else f'{len(rows)} values'}, expected 1 to an even"
                             " number without gaps: rows 2k-1 and 2k form a pair")
    shown = [image_of(index, len(rows), order) for index in sorted(rows)]
    ordered = [rows[index] for index in sorted(rows)]
    if shards:
        return ordered, parquet_images(shards, ("image",)).reordered([places[number] for number in shown])
    images = _image_folder(root, name)
    paths = tuple((str(images / f"{number}.jpg"),) for number in shown)
    check_images(paths, name)
    return ordered, Files(paths)


def _row(record: dict, where: str, key: dict[int, str]) -> Row:
    try:
        index = int(field(record, "Index", (str, int), where))
    except ValueError:
        raise BenchmarkError(f"{where}: Index is {record['Index']!r}, expected a whole number") from None
    options_text = field(record, "Options", str, where)
    _, options = split_options(options_text, "(a)", where)
    question = field(record, "Question", str, where)
    letter = key.get(index, gold_letter(field(record, "Correct Answer", str, where), len(options), where))
    return Row(id=str(index), question=question, letter=letter, answer=options[ord(letter) - ord("A")],
               options=options, group=f"pair {(index + 1) // 2}", texts={"options": options_text})


def _image_folder(root: Path, name: str) -> Path:
    for candidate in IMAGE_FOLDERS:
        if (root / candidate).is_dir():
            return root / candidate
    raise BenchmarkError(f"{name}: no image folder in {root}, expected {' or '.join(map(repr, IMAGE_FOLDERS))}")
