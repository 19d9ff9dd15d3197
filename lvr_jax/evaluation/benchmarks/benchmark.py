"""What a loaded benchmark looks like to the evaluation loop.

`Benchmark` is a random-access source of `Sample`s (`len`, `[i]`, picklable, as grain wants), whose question is the row
rendered by one harness's prompt template and whose images are read or decoded only when that item is asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lvr_jax.data.boxes import BoxError, normalise
from lvr_jax.data.sample import Box, ImageSource, Sample
from lvr_jax.evaluation import prompts as templates
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_unique
from lvr_jax.files.image_io import open_image
from lvr_jax.files.names import inside

# What a row shows: its images, and its boxes as normalised xyxy. Called with the row's place in the loaded benchmark.
Pictures = Callable[[int], tuple[tuple[ImageSource, ...], tuple[Box, ...]]]


@dataclasses.dataclass(frozen=True)
class Files:
    """Pictures that are image files on disk; boxes, if any, are already normalised."""

    paths: tuple[tuple[str, ...], ...]
    boxes: tuple[tuple[Box, ...], ...] = ()

    def __call__(self, index: int) -> tuple[tuple[ImageSource, ...], tuple[Box, ...]]:
        return self.paths[index], self.boxes[index] if self.boxes else ()


@dataclasses.dataclass(frozen=True)
class PixelBoxedFiles:
    """One image file a question, with boxes in pixels. They are normalised when the item is read, because that needs
    the image's size; only its header is opened for that. What leaves the image is clipped, as the official code does.
    """

    paths: tuple[str, ...]
    pixel_boxes: tuple[tuple[Box, ...], ...]
    box_format: str                                     # a name of data.boxes.FORMATS

    def __call__(self, index: int) -> tuple[tuple[ImageSource, ...], tuple[Box, ...]]:
        path, boxes = self.paths[index], self.pixel_boxes[index]
        if not boxes:
            return (path,), ()
        try:
            with open_image(path) as image:
                width, height = image.size
        except OSError as error:                        # Pillow's own errors are OSErrors
            raise BenchmarkError(f"{path}: not a readable image ({error})") from None
        try:
            return (path,), tuple(normalise(box, self.box_format, width=width, height=height, clip=True)
                                  for box in boxes)
        except BoxError as error:
            raise BenchmarkError(f"{path}: {error}") from None


class Benchmark:
    """Rows of one benchmark with their pictures, as `Sample`s for one prompt harness."""

    def __init__(self, name: str, family: str, rows: Sequence[Row], pictures: Pictures, *, prompts: str = "clean"):
        if not rows:
            raise BenchmarkError(f"{name}: no questions found, expected at least one")
        check_unique((row.id for row in rows), name)
        templates.check(prompts, family)
        self.name, self.family, self.prompts = name, family, prompts
        self.rows = tuple(rows)
        self._pictures = pictures
        self._places = tuple(range(len(rows)))       # where row i is in `pictures`

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        images, boxes = self._pictures(self._places[index])
        return Sample(id=row.id, images=images, question=templates.render(row, self.family, self.prompts),
                      answer=row.answer, options=row.options, letter=row.letter, boxes=boxes,
                      category=row.category, source=self.name)

    def __repr__(self) -> str:
        return f"Benchmark({self.name!r}, {len(self)} questions, prompts={self.prompts!r})"

    def subset(self, indices: Sequence[int]) -> Benchmark:
        """The same benchmark with only these rows, in this order: for a limit, a host's share, a resumed run."""
        chosen = Benchmark(self.name, self.family, [self.rows[i] for i in indices], self._pictures,
                           prompts=self.prompts)
        chosen._places = tuple(self._places[i] for i in indices)
        return chosen


def existing_folder(path: str | os.PathLike, name: str) -> Path:
    """The folder as a path. Raises BenchmarkError if there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise BenchmarkError(f"{name}: {folder} is not a folder, expected the downloaded benchmark")
    return folder


def existing_file(path: Path, name: str) -> Path:
    """The path of an index file. Raises BenchmarkError if there is none."""
    if not path.is_file():
        raise BenchmarkError(f"{name}: index file {path} is missing")
    return path


def image_path(folder: str | os.PathLike, name: object, where: str) -> str:
    """The image that a record names, which must lie in its benchmark's folder."""
    try:
        return str(inside(folder, name))
    except ValueError as error:
        raise BenchmarkError(f"{where}: image {error}") from None


def check_images(paths: Sequence[Sequence[str]], name: str) -> None:
    """All image files must be there before an evaluation of hours begins; the first few missing ones are named."""
    missing = [path for each in paths for path in each if not os.path.isfile(path)]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise BenchmarkError(f"{name}: {len(missing)} image files are missing: {shown}")
