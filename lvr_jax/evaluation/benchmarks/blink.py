"""Reads BLINK: one folder per subtask, as the hub's parquet shards or as extracted records with images.

    Counting/val-00000-of-00001.parquet            idx, question, sub_task, image_1..4, choices, answer, prompt
    Counting/val/records.jsonl + Counting/val/images/     the same fields, image_1..4 as relative paths

`blink` is the five subtasks (697 questions) of LVR, PRISM and their followers, `blink14` is all of them.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from lvr_jax.evaluation.benchmarks.benchmark import Files, Pictures, check_images, existing_folder, image_path
from lvr_jax.evaluation.benchmarks.tables import parquet_images, read_jsonl, read_parquet
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter, texts

# Validation questions per subtask.
PUBLISHED = {
    "Counting": 120, "IQ_Test": 150, "Jigsaw": 150, "Relative_Reflectance": 134, "Spatial_Relation": 143,
    "Art_Style": 117, "Forensic_Detection": 132, "Functional_Correspondence": 130, "Multi-view_Reasoning": 133,
    "Object_Localization": 122, "Relative_Depth": 124, "Semantic_Correspondence": 139,
    "Visual_Correspondence": 172, "Visual_Similarity": 135,
}
ALL_TASKS = tuple(PUBLISHED)
LVR_TASKS = ALL_TASKS[:5]
IMAGES = ("image_1", "image_2", "image_3", "image_4")
COLUMNS = ("idx", "question", "sub_task", "choices", "answer", "prompt")


def read(folder: str, name: str, any_count: bool, *, tasks: Sequence[str] = LVR_TASKS) -> tuple[list[Row], Pictures]:
    """The validation questions of these subtasks, in this order of subtasks. (The test split's answers are hidden.)"""
    for task in tasks:
        if task not in PUBLISHED:
            raise BenchmarkError(f"{name}: no subtask {task!r}, expected some of {', '.join(ALL_TASKS)}")
    root = existing_folder(folder, name)
    missing = [task for task in tasks if not (root / task).is_dir()]
    if missing:
        raise BenchmarkError(f"{name}: {root} has no folder for {', '.join(missing)}")
    by_task = {task: sorted((root / task).glob("val-*.parquet")) for task in tasks}
    shards = [shard for each in by_task.values() for shard in each]
    bare = [task for task, each in by_task.items() if not each]
    if shards and bare:
        raise BenchmarkError(f"{name}: {root / bare[0]} has no val-*.parquet as the other subtasks have, expected all "
                             "of them as parquet or all extracted")
    pictures: Pictures
    if shards:
        records, pictures = read_parquet(shards, COLUMNS, IMAGES), parquet_images(shards, IMAGES)
    else:
        records, pictures = _extracted(root, tasks, name)
    rows = [_row(record, where, tasks) for where, record in records]
    if not any_count:
        check_counts(collections.Counter(row.category for row in rows), {t: PUBLISHED[t] for t in tasks}, name)
    return rows, pictures


def _extracted(root: Path, tasks: Sequence[str], name: str) -> tuple[list[tuple[str, dict]], Files]:
    records, paths = [], []
    for task in tasks:
        index = root / task / "val" / "records.jsonl"
        if not index.is_file():
            raise BenchmarkError(f"{name}: {root / task} has neither val-*.parquet nor val/records.jsonl")
        for where, record in read_jsonl(index):
            images = [record[key] for key in IMAGES if record.get(key)]
            if not images:
                raise BenchmarkError(f"{where}: no image_1, expected a path relative to {index.parent}")
            records.append((where, record))
            paths.append(tuple(image_path(index.parent, image, where) for image in images))
    check_images(paths, name)
    return records, Files(tuple(paths))


def _row(record: dict, where: str, tasks: Sequence[str]) -> Row:
    task = field(record, "sub_task", str, where)
    if task not in tasks:
        raise BenchmarkError(f"{where}: sub_task is {task!r}, expected one of {', '.join(tasks)}")
    options = texts(record, "choices", where)
    letter = gold_letter(field(record, "answer", str, where), len(options), where)
    return Row(id=field(record, "idx", str, where), question=field(record, "question", str, where), letter=letter,
               answer=options[ord(letter) - ord("A")], options=options, category=task,
               texts={"prompt": field(record, "prompt", str, where)})
