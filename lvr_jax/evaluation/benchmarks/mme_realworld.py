"""Reads MME-RealWorld-Lite: parquet shards, base64 images, options written "(A) ...", E = not in image.

    *.parquet     index, bytes, question, "multi-choice options", answer, category, l2-category; 1,919 rows

`category` is "Perception/Remote Sensing", "Reasoning/Monitoring", ...: two tasks by five domains.
"""

from __future__ import annotations

import string

from lvr_jax.evaluation.benchmarks.benchmark import existing_folder
from lvr_jax.evaluation.benchmarks.tables import ParquetImages, parquet_images, read_parquet
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter, texts

COUNT = 1919
TASKS = ("Perception", "Reasoning")
COLUMNS = ("index", "question", "multi-choice options", "answer", "category")


def read(folder: str, name: str, any_count: bool) -> tuple[list[Row], ParquetImages]:
    """Reads the rows and images of MME-RealWorld-Lite from its parquet shards."""
    root = existing_folder(folder, name)
    shards = sorted(root.rglob("*.parquet"))
    if not shards:
        raise BenchmarkError(f"{name}: no *.parquet in {root}")
    rows = [_row(record, where) for where, record in read_parquet(shards, COLUMNS, ("bytes",))]
    if not any_count:
        check_counts({"MME-RealWorld-Lite": len(rows)}, {"MME-RealWorld-Lite": COUNT}, name)
    return rows, parquet_images(shards, ("bytes",))


def _row(record: dict, where: str) -> Row:
    category = field(record, "category", str, where)
    if category.split("/")[0] not in TASKS:
        raise BenchmarkError(f"{where}: category is {category!r}, expected Perception/... or Reasoning/...")
    written = texts(record, "multi-choice options", where)
    for letter, option in zip(string.ascii_uppercase, written):
        if not isinstance(option, str) or not option.startswith(f"({letter})"):
            raise BenchmarkError(f"{where}: option {option!r}, expected it to begin with ({letter})")
    options = tuple(option[3:].strip() for option in written)
    letter = gold_letter(field(record, "answer", str, where), len(options), where)
    return Row(id=str(field(record, "index", (str, int), where)), question=field(record, "question", str, where),
               letter=letter, answer=options[ord(letter) - ord("A")], options=options, category=category,
               texts={"options": written})
