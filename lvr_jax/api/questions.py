"""Makes what a person asks, a picture and a question, an item as evaluations and audits know it."""

from __future__ import annotations

import copy
import csv
import dataclasses
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lvr_jax.data.boxes import normalise
from lvr_jax.data.images import load_image
from lvr_jax.data.options import LETTERS
from lvr_jax.data.sample import DataError, ImageSource, Sample
from lvr_jax.evaluation import prompts as templates
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_unique

Picture = ImageSource | Image.Image
FAMILY = "asked"        # of benchmarks: no harness has a prompt or a rule of its own for it


class ItemError(DataError):
    """A question that cannot be asked."""


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """A question about a picture.

    image: a path (local or gs://), an encoded file's bytes, a Pillow image, uint8 [H, W, 3], or a list of those. It is
        shown as it is stored: like the reference, nothing here turns a photograph by its EXIF tag
    question: without options and instruction, which the prompt adds
    options: texts, lettered A, B, ... in this order, no two of them the same; none for an open question
    answer: the right option's text or letter, or the right text of an open question, where it is known
    box: (x0, y0, x1, y1) of what is asked for in the first picture, 0..1 of its width and height: oracles need it
    id: names the item in tables and in the keys of noise; by default its place in the list
    category: kind of question
    """

    image: Picture | Sequence[Picture] = dataclasses.field(repr=False)
    question: str
    options: Sequence[str] | None = None
    answer: str | None = None
    box: Sequence[float] | None = None
    id: str = ""
    category: str = ""

    def __post_init__(self):
        if not isinstance(self.question, str) or not self.question.strip():
            raise ItemError(f"question is {self.question!r}, expected a text")
        for name in ("answer", "id", "category"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("answer", None):
                raise ItemError(f"{name} is {value!r}, expected a text")
        options = self.options
        # A set has no order, a generator ends after the first look.
        listed = isinstance(options, list | tuple) and all(isinstance(o, str) and o for o in options)
        if options is not None and not listed:
            raise ItemError(f"options is {options!r}, expected a list of texts")
        if options is not None and not 2 <= len(options) <= len(LETTERS):
            raise ItemError(f"options is {list(options)!r}, expected two to {len(LETTERS)} texts, or none at all")
        twice = next((o for n, o in enumerate(options or ()) if o in options[:n]), None)
        if twice is not None:
            raise ItemError(f"options has {twice!r} twice, expected texts that an answer tells apart")
        for text in filter(None, (self.question, self.answer, self.id, self.category, *(options or ()))):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ItemError(f"{text!r} holds half of a character, expected text that a file can hold") from None

    def row(self, number: int) -> Row:
        """The item without its picture."""
        options = tuple(self.options or ())
        letter, answer = None, self.answer or ""
        if options and answer:
            at = options.index(answer) if answer in options else LETTERS.find(answer) if len(answer) == 1 else -1
            if not 0 <= at < len(options):
                raise ItemError(f"answer is {answer!r}, expected one of {', '.join(options)} or its letter")
            letter, answer = LETTERS[at], options[at]
        return Row(self.id or f"item{number}", self.question, letter, answer, options, self.category or "")

    def images(self) -> tuple[ImageSource, ...]:
        """The pictures, decoded where they are not files. Raises ImageError for one that cannot be read."""
        several = list(self.image) if isinstance(self.image, list | tuple) else [self.image]
        if not several:
            raise ItemError(f"item {self.id or self.question!r} has no image, expected one at least")
        for each in several:
            if not isinstance(each, str | os.PathLike | bytes | np.ndarray | Image.Image):
                found = type(each).__name__
                raise ItemError(f"image is of type {found}, expected a path, bytes, a Pillow image or an array")
        return tuple(load_image(each) if isinstance(each, Image.Image) else each for each in several)


def options_of(text: str) -> list[str]:
    """Options that are written as one text, with commas between them; one that has commas itself in double quotes."""
    (row,) = csv.reader([" ".join(text.split())], skipinitialspace=True)
    return [option.strip() for option in row]


Asked = Item | Sample | Sequence[Any] | Mapping[str, Any]


def item_of(asked: Asked) -> Item | Sample:
    """An item, a benchmark's sample, (image, question, options, answer, box), or a dict of the same by name."""
    if isinstance(asked, Item | Sample):
        return asked
    try:
        if isinstance(asked, Mapping):
            return Item(**asked)
        if isinstance(asked, list | tuple):
            return Item(*asked)
    except TypeError as error:
        raise ItemError(f"item {_shortly(asked)}: {error}") from None
    raise ItemError(f"item {_shortly(asked)}: expected an Item, (image, question, options), a dict or a Sample")


def _shortly(asked: Any) -> str:
    return " ".join(reprlib.repr(asked).split())


def several(asked: Asked | Sequence[Asked]) -> list[Asked]:
    """The items of an argument that is one of them or a list."""
    if not is_one(asked) and (isinstance(asked, str | bytes) or not isinstance(asked, Iterable)):
        raise ItemError(f"items is {_shortly(asked)}, expected an item or a list of them")
    return [asked] if is_one(asked) else list(asked)


def is_one(asked: Any) -> bool:
    """Whether this is one item and not a list of them."""
    return isinstance(asked, Item | Sample | Mapping) or (
        isinstance(asked, list | tuple) and len(asked) > 1 and isinstance(asked[1], str)
    )


class Questions:
    """Items in the face of a benchmark (evaluation.benchmarks): rows, and samples when they are asked for.

    A sample's question is shown as it stands, an item's by a harness's prompt template (evaluation.prompts).
    """

    family = FAMILY

    def __init__(self, asked: Sequence[Asked], prompts: str, name: str = "asked"):
        if not len(asked):
            raise BenchmarkError(f"{name}: no items, expected one at least")
        templates.check(prompts, FAMILY)
        self.name, self.prompts = name, prompts
        self.items = [item_of(each) for each in asked]
        self.rows = tuple(
            Row(each.id, each.question, each.letter, each.answer, each.options, each.category)
            if isinstance(each, Sample) else each.row(n) for n, each in enumerate(self.items)
        )  # fmt: skip
        check_unique((row.id for row in self.rows), name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        item, row = self.items[index], self.rows[index]
        if isinstance(item, Sample):
            return item
        boxes = () if item.box is None else (normalise(item.box, "normalised_xyxy"),)
        return Sample(row.id, item.images(), templates.render(row, FAMILY, self.prompts), row.answer, row.options,
                      row.letter, boxes, row.category, self.name)  # fmt: skip

    def counterfactual(self, index: int) -> None:
        """No item has another scene of the same question."""

    def subset(self, indices: Sequence[int]) -> Questions:
        """Some of the items, under the names that they have here."""
        part = copy.copy(self)
        part.items, part.rows = [self.items[i] for i in indices], tuple(self.rows[i] for i in indices)
        return part


def scenes(count: int, seed: int = 0, split: str = "test", **settings) -> list[Sample]:
    """Generated digit search scenes, with questions, options, answers and boxes: what the tiny checkpoints know.

    settings: further fields of data.digit_scenes.DigitSearch. The first `count` items of `tools/evaluate.py --benchmark
    digit_search` under this seed.
    """
    from lvr_jax.data.digit_scenes import DigitSearch

    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ItemError(f"scenes: count is {count!r}, expected a whole number, at least 1")
    known = {field.name for field in dataclasses.fields(DigitSearch)} - {"size"}
    if unknown := sorted(set(settings) - known):
        raise ItemError(f"scenes: {unknown[0]!r} is no setting of scenes, expected some of {', '.join(sorted(known))}")
    try:
        source = DigitSearch(size=count, seed=seed, split=split, **settings)
    except (TypeError, ValueError) as error:
        raise ItemError(f"scenes: {error}") from error
    return [source[n] for n in range(count)]
