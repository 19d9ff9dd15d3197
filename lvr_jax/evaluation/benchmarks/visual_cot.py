"""Reads the held-out part of Visual-CoT: annotations of the repository, images of the hub's archives.

    benchmark/vsr.json, benchmark/cub.json, ...     thirteen lists of conversations, question_id unique in each
    cot/vsr/000000287427.jpg, ...                   the images that they name

The box is the one behind "###" in the second image entry: pixels of the original image. (The numbers in the
conversation are normalised after padding to a square, and are not used.) Questions are open: no letter.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pathlib import Path

from lvr_jax.data.sample import Box
from lvr_jax.evaluation.benchmarks.benchmark import (
    PixelBoxedFiles,
    check_images,
    existing_file,
    existing_folder,
    image_path,
)
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_counts, field
from lvr_jax.files.json_io import JsonError, parse

PUBLISHED = {
    "cub": 492, "docvqa": 888, "dude": 603, "emotic": 656, "flickr30k": 1546, "gqa": 978, "infographicsvqa": 360,
    "openimages": 945, "sroie": 686, "textcap": 853, "textvqa": 526, "visual7w": 1000, "vsr": 404,
}
BOX_REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."


def read(folder: str, name: str, any_count: bool, *,
         sources: Sequence[str] = tuple(PUBLISHED)) -> tuple[list[Row], PixelBoxedFiles]:
    """The validation questions of these sources; `category` is the source."""
    root = existing_folder(folder, name)
    rows, paths, boxes = [], [], []
    for source in sources:
        if source not in PUBLISHED:
            raise BenchmarkError(f"{name}: no source {source!r}, expected some of {', '.join(PUBLISHED)}")
        index = existing_file(root / "benchmark" / f"{source}.json", name)
        for number, record in enumerate(_records(index)):
            where = f"{index}: record {number}"
            row, path, box = _row(record, source, where)
            rows.append(row)
            paths.append(image_path(root, path, where))
            boxes.append((box,))
    check_images([[path] for path in paths], name)
    if not any_count:
        check_counts(collections.Counter(row.category for row in rows), {s: PUBLISHED[s] for s in sources}, name)
    return rows, PixelBoxedFiles(tuple(paths), tuple(boxes), "pixel_xyxy")


def _records(path: Path) -> list[dict]:
    try:
        records = parse(path.read_bytes(), path)
    except JsonError as error:
        raise BenchmarkError(str(error)) from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise BenchmarkError(f"{path}: expected a list of records")
    return records


def _row(record: dict, source: str, where: str) -> tuple[Row, str, Box]:
    images = field(record, "image", list, where)
    if not all(isinstance(each, str) for each in images):
        raise BenchmarkError(f'{where}: image is {images!r}, expected [path, "path###[x0, y0, x1, y1]"]')
    box = re.fullmatch(r"(.+)###\[(.+)\]", images[1]) if len(images) == 2 else None
    try:
        values = tuple(float(value) for value in box[2].split(",")) if box else ()
    except ValueError:
        values = ()
    if box is None or len(values) != 4 or images[0] != box[1]:
        raise BenchmarkError(f'{where}: image is {images!r}, expected [path, "path###[x0, y0, x1, y1]"]')
    turns = field(record, "conversations", list, where)
    if [turn.get("from") if isinstance(turn, dict) else None for turn in turns] != ["human", "gpt", "human", "gpt"]:
        raise BenchmarkError(f"{where}: conversations has {len(turns)} turns, expected human, gpt, human, gpt")
    asked, replied = (field(turns[n], "value", str, f"{where}: conversations[{n}]") for n in (0, 3))
    question = asked.removeprefix("<image>\n").strip().removesuffix(BOX_REQUEST).strip()
    answer = replied.strip()
    if not question or not answer:
        raise BenchmarkError(f"{where}: question is {question!r}, answer is {answer!r}, expected both")
    return (Row(id=f"{source}/{field(record, 'question_id', (int, str), where)}", question=question, letter=None,
                answer=answer, category=source), images[0], values)
