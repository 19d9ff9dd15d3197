"""Reads V*Bench: hub layout of craigwu/vstar_bench, one jsonl, two image folders, a JSON with boxes per image.

    test_questions.jsonl                 image, text, category, question_id, label
    direct_attributes/sa_4690.jpg        115 questions with four options
    direct_attributes/sa_4690.json       target_object, bbox (x, y, w, h in pixels), question, options (first is right)
    relative_position/...                76 questions with two options

`text` ends with the instruction line already; harnesses that append their own ask twice (`prompts.py`).
"""

from __future__ import annotations

import collections
import math
from pathlib import Path

from lvr_jax.data.sample import Box
from lvr_jax.evaluation.benchmarks.benchmark import (
    PixelBoxedFiles,
    check_images,
    existing_file,
    existing_folder,
    image_path,
)
from lvr_jax.evaluation.benchmarks.tables import read_jsonl
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field, gold_letter, split_options, texts
from lvr_jax.files.json_io import JsonError, read_object

PUBLISHED = {"direct_attributes": 115, "relative_position": 76}


def read(folder: str, name: str, any_count: bool, *, boxes: bool = True) -> tuple[list[Row], PixelBoxedFiles]:
    """The 191 questions. `boxes=False` does without the per-image JSON files (some mirrors do not carry them)."""
    root = existing_folder(folder, name)
    rows, paths, pixel_boxes = [], [], []
    for where, record in read_jsonl(existing_file(root / "test_questions.jsonl", name)):
        category = field(record, "category", str, where)
        if category not in PUBLISHED:
            raise BenchmarkError(f"{where}: category is {category!r}, expected one of {', '.join(PUBLISHED)}")
        text = field(record, "text", str, where)
        question, options = _options(text, where)
        letter = gold_letter(field(record, "label", str, where), len(options), where)
        path = image_path(root, record.get("image"), where)
        texts: dict[str, str | tuple[str, ...]] = {"text": text}
        found: tuple[Box, ...] = ()
        if boxes:
            found, sentences = _annotation(Path(path).with_suffix(".json"))
            texts["likelihood_options"] = sentences
        rows.append(Row(id=str(field(record, "question_id", (str, int), where)), question=question, letter=letter,
                        answer=options[ord(letter) - ord("A")], options=options, category=category, texts=texts))
        paths.append(path)
        pixel_boxes.append(found)
    check_images([[path] for path in paths], name)
    if not any_count:
        check_counts(collections.Counter(row.category for row in rows), PUBLISHED, name)
    return rows, PixelBoxedFiles(tuple(paths), tuple(pixel_boxes), "pixel_xywh")


def _options(text: str, where: str) -> tuple[str, tuple[str, ...]]:
    question, options = split_options(text, "(A)", where)
    # Options stand on a line each; what follows the last one's line is the instruction.
    return question, tuple(option.split("\n")[0].strip() for option in options)


def _annotation(path: Path) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    try:
        record = read_object(path)
    except FileNotFoundError:
        raise BenchmarkError(f"{path} is missing, expected the image's boxes (boxes=False does without)") from None
    except JsonError as error:
        raise BenchmarkError(str(error)) from None
    boxes = field(record, "bbox", list, str(path))
    for box in boxes:
        numbers = isinstance(box, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in box)
        if not numbers or len(box) != 4:
            raise BenchmarkError(f"{path}: bbox holds {box!r}, expected x, y, w, h in pixels")
    if not boxes:
        raise BenchmarkError(f"{path}: bbox is empty, expected at least one box")
    return tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in boxes), texts(record, "options", str(path))
