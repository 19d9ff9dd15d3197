"""Reads VisualPuzzles: parquet shards; options are a list of four, or null when drawn in the image.

    *.parquet     id, image, question, options, answer, category (five kinds of reasoning); 1,168 rows
"""

from __future__ import annotations

from lvr_jax.evaluation.benchmarks.benchmark import existing_folder
from lvr_jax.evaluation.benchmarks.tables import ParquetImages, parquet_images, read_parquet
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter, texts

COUNT = 1168
CATEGORIES = ("algorithmic", "analogical", "deductive", "inductive", "spatial")
COLUMNS = ("id", "question", "options", "answer", "category")


def read(folder: str, name: str, any_count: bool) -> tuple[list[Row], ParquetImages]:
    """Reads the rows and images of VisualPuzzles from its parquet shards."""
    root = existing_folder(folder, name)
    shards = sorted(root.rglob("*.parquet"))
    if not shards:
        raise BenchmarkError(f"{name}: no *.parquet in {root}")
    rows = [_row(record, where) for where, record in read_parquet(shards, COLUMNS, ("image",))]
    if not any_count:
        check_counts({"VisualPuzzles": len(rows)}, {"VisualPuzzles": COUNT}, name)
    return rows, parquet_images(shards, ("image",))


def _row(record: dict, where: str) -> Row:
    category = field(record, "category", str, where).lower()
    if category not in CATEGORIES:
        raise BenchmarkError(f"{where}: category is {category!r}, expected one of {', '.join(CATEGORIES)}")
    options = texts(record, "options", where) if record["options"] is not None else ()
    if options and len(options) != 4:
        raise BenchmarkError(f"{where}: {len(options)} options, expected four or null")
    letter = gold_letter(field(record, "answer", str, where), 4, where)
    return Row(id=str(field(record, "id", (str, int), where)), question=field(record, "question", str, where),
               letter=letter, answer=options[ord(letter) - ord("A")] if options else letter, options=options,
               category=category)
