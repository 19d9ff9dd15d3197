"""Makes a user's own set a benchmark: one jsonl file, a question a line, image paths beside it.

    {"id": "7", "image": "photos/7.jpg", "question": "What colour is the cup?",
     "options": ["red", "blue"], "answer": "B", "boxes": [[0.1, 0.2, 0.4, 0.5]], "category": "colour",
     "group": "cup", "cycle": "1"}

| field | needed | meaning |
|---|---|---|
| `image` or `images` | yes | one path or a list, absolute or relative to the jsonl file; images come before the text |
| `question` | yes | without options and without instruction: the prompt template adds both |
| `answer` | yes | with `options` a letter ("B" or "(B)"), without them the gold text |
| `options` | no | list of at least two option texts; without it the question is open |
| `id` | no | unique; by default the line number |
| `boxes` | no | list of [x0, y0, x1, y1], each in 0..1 of the first image's width and height |
| `category` | no | rows of the report, and what a macro average averages |
| `group`, `cycle` | no | pair accuracy counts a group as right if all of it is; cycle mean averages over cycles |

Unknown fields are refused by name, because a misspelt field would change a score in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvr_jax.data.boxes import BoxError, normalise
from lvr_jax.data.sample import Box
from lvr_jax.evaluation.benchmarks.benchmark import Files, check_images
from lvr_jax.evaluation.benchmarks.tables import read_jsonl
from lvr_jax.evaluation.rows import BenchmarkError, Row, field, gold_letter

FIELDS = ("id", "image", "images", "question", "options", "answer", "boxes", "category", "group", "cycle")


def read(folder: str, name: str, any_count: bool) -> tuple[list[Row], Files]:
    """`folder` is the jsonl file itself. There is no published count to hold it to."""
    path = Path(folder)
    if not path.is_file():
        raise BenchmarkError(f"{name}: {path} is not a file, expected a jsonl file")
    rows, paths, boxes = [], [], []
    for where, record in read_jsonl(path):
        unknown = [key for key in record if key not in FIELDS]
        if unknown:
            raise BenchmarkError(f"{where}: unknown field {unknown[0]!r}, expected some of {', '.join(FIELDS)}")
        rows.append(_row(record, where, default_id=where.rsplit(":", 1)[1]))
        paths.append(tuple(str(path.parent / image) for image in _images(record, where)))
        boxes.append(_boxes(record, where))
    check_images(paths, name)
    return rows, Files(tuple(paths), tuple(boxes))


def _row(record: dict, where: str, default_id: str) -> Row:
    options = tuple(field(record, "options", list, where)) if "options" in record else ()
    if options and (len(options) < 2 or not all(isinstance(option, str) and option for option in options)):
        raise BenchmarkError(f"{where}: options is {list(options)!r}, expected at least two texts")
    question, answer = (field(record, key, str, where).strip() for key in ("question", "answer"))
    if not question or not answer:
        raise BenchmarkError(f"{where}: {'answer' if question else 'question'} is empty")
    letter = gold_letter(answer, len(options), where) if options else None
    plain: dict[str, Any] = {key: str(field(record, key, (str, int), where))
                             for key in ("id", "category", "group", "cycle") if key in record}
    return Row(**{"id": default_id} | plain, question=question, letter=letter, options=options,
               answer=options[ord(letter) - ord("A")] if letter else answer)


def _images(record: dict, where: str) -> list[str]:
    if ("image" in record) == ("images" in record):
        raise BenchmarkError(f"{where}: expected either image (a path) or images (a list of paths)")
    images = [record["image"]] if "image" in record else field(record, "images", list, where)
    if not images or not all(isinstance(image, str) and image for image in images):
        raise BenchmarkError(f"{where}: images is {images!r}, expected paths")
    return images


def _boxes(record: dict, where: str) -> tuple[Box, ...]:
    try:
        return tuple(normalise(box, "normalised_xyxy") for box in field(record, "boxes", list, where)) \
            if "boxes" in record else ()
    except BoxError as error:
        raise BenchmarkError(f"{where}: {error}") from None
