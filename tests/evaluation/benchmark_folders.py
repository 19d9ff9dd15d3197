"""Makes miniature benchmark folders: little images that say their number, index files, parquet shards."""

import io
import json

import numpy as np
import pyarrow.parquet
from PIL import Image


def picture(number: int, size=(8, 6)) -> np.ndarray:
    """uint8 [H, W, 3] whose pixels are all `number` (spread over two channels): tells which image was read."""
    width, height = size
    return np.full((height, width, 3), (number % 256, number // 256, 7), np.uint8)


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


def png(number: int, size=(8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number, size)).save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path, number: int, size=(8, 6)) -> None:
    # PNG bytes whatever the name: exact pixels, and Pillow goes by content.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number, size))


def write_jsonl(path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_parquet(path, records, row_group_size=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=row_group_size)
