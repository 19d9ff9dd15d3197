"""Reads HR-Bench: one parquet per resolution, every question stored under four cyclic orders of its options.

    hr_bench_4k.parquet / hr_bench_8k.parquet     index, image (base64), question, A, B, C, D, answer, category,
                                                  cycle_category; 200 questions x 4 orders = 800 rows
"""

from __future__ import annotations

import collections

from lvr_jax.evaluation.benchmarks.benchmark import existing_file, existing_folder
from lvr_jax.evaluation.benchmarks.tables import ParquetImages, parquet_images, read_parquet
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter

PUBLISHED = {"single": 400, "cross": 400}
CYCLES = 4
LETTERS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", *LETTERS, "answer", "category", "cycle_category")


def read(folder: str, name: str, any_count: bool, *, resolution: str) -> tuple[list[Row], ParquetImages]:
    """800 rows; the four orders of a question share a `group`."""
    shard = existing_file(existing_folder(folder, name) / f"hr_bench_{resolution}.parquet", name)
    seen: collections.Counter = collections.Counter()
    rows = []
    for where, record in read_parquet([shard], COLUMNS, ("image",)):
        options = tuple(str(field(record, letter, (str, int, float), where)) for letter in LETTERS)
        category = field(record, "category", str, where)
        if category not in PUBLISHED:
            raise BenchmarkError(f"{where}: category is {category!r}, expected one of {', '.join(PUBLISHED)}")
        question, cycle = field(record, "question", str, where), str(field(record, "cycle_category", (str, int), where))
        letter = gold_letter(field(record, "answer", str, where), len(LETTERS), where)
        # The rows carry no id of the underlying question. Same words and same options can be asked of two images;
        # such twins are told apart by how many went before in the same cycle.
        same = (category, question, tuple(sorted(options)), options[ord(letter) - ord("A")])
        nth = seen[same, cycle] = seen[same, cycle] + 1
        rows.append(Row(id=str(field(record, "index", (str, int), where)), question=question, letter=letter,
                        answer=options[ord(letter) - ord("A")], options=options, category=category, cycle=cycle,
                        group=f"{category} | {question} | {' | '.join(same[2])} | {same[3]} | {nth}"))
    if not any_count:
        _check_cycles(rows, name)
        check_counts(collections.Counter(row.category for row in rows), PUBLISHED, name)
    return rows, parquet_images([shard], ("image",))


def _check_cycles(rows: list[Row], name: str) -> None:
    cycles = sorted({row.cycle for row in rows})
    if len(cycles) != CYCLES:
        raise BenchmarkError(f"{name}: cycle_category holds {', '.join(cycles)}, expected {CYCLES} cyclic orders")
    groups: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    for members in groups.values():
        first = members[0].options
        turns = {first[turn:] + first[:turn] for turn in range(CYCLES)}
        if sorted(row.cycle for row in members) != cycles or {row.options for row in members} != turns:
            raise BenchmarkError(f"{name}: {members[0].question!r} (index {members[0].id}) is there {len(members)}"
                                 f" times, expected each of the {CYCLES} cyclic orders once (any_count=True accepts a"
                                 " subset)")
