"""Takes fields out of a record; a complaint names file, record, field, value and what was expected."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence

from etils import epath

from lvr_jax.data import boxes
from lvr_jax.data.record_files import RecordError, is_remote
from lvr_jax.data.sample import Box, Sample
from lvr_jax.files.image_io import is_scaled_copy, open_image

IMAGE = "<image>"
BOX_POLICIES = ("refuse", "clip", "keep")
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a format needs to know besides the record itself; `records.RecordSource` says what each field does."""

    image_folder: str = ""
    name: str = ""
    instruction: str = ""
    box_policy: str = "refuse"
    check_images: bool = True
    verbatim: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One record of a data file, whose fields are read by kind; errors name file, record and field."""

    record: dict
    file: str
    index: int
    settings: Settings

    def error(self, field: str, value: object, problem: str) -> RecordError:
        if value is _MISSING:
            value, problem = None, f"missing, {problem}"
        return RecordError(self.file, self.index, field, value, problem)

    def get(self, field: str) -> object:
        """The bare value of a field, or a stand-in that the checks below report as missing."""
        return self.record.get(field, _MISSING)

    def text(self, field: str) -> str:
        return self.as_text(field, self.get(field))

    def as_text(self, field: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, value, "expected text that is not blank")
        return value

    def optional_text(self, field: str) -> str:
        return self.text(field) if self.record.get(field) not in (None, "") else ""

    def list(self, field: str) -> list:
        return self.as_list(field, self.get(field))

    def as_list(self, field: str, value: object) -> list:
        if not isinstance(value, list) or not value:
            raise self.error(field, value, "expected a list with at least one member")
        return value

    def part(self, field: str, value: object, key: str) -> object:
        """Member `key` of a nested object."""
        if not isinstance(value, dict):
            raise self.error(field, value, "expected a JSON object")
        return value.get(key, _MISSING)

    def image(self, field: str, name: object) -> str:
        """The path of an image, which is there unless settings say not to look."""
        name, folder = self.as_text(field, name), self.settings.image_folder
        if is_remote(name) or not folder:
            path = name
        else:
            path = f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)
        if self.settings.check_images and not (epath.Path(path).exists() if is_remote(path) else os.path.isfile(path)):
            raise self.error(field, name, f"no image at {path}")
        return path

    def images(self, field: str) -> tuple[str, ...]:
        """The paths of a field that holds one image name or a list of them."""
        value = self.get(field)
        names = [value] if isinstance(value, str) else self.as_list(field, value)
        return tuple(self.image(field, name) for name in names)

    def size(self, field: str, path: str) -> tuple[int, int]:
        """Width and height that boxes are in: the record's own, which must fit the image, or else the image's."""
        width, height = self.record.get("width"), self.record.get("height")
        if width is None and height is None:
            return self._actual_size(field, path)
        for side, value in (("width", width), ("height", height)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self.error(side, value, "expected a whole number of pixels, at least 1")
        if self.settings.check_images:
            actual = self._actual_size(field, path)
            if not is_scaled_copy(actual, (width, height)):
                raise self.error("width and height", [width, height], f"not those of {path}, which is {actual[0]} x"
                                 f" {actual[1]} pixels, nor of a copy in another scale")  # fmt: skip
        return width, height

    def _actual_size(self, field: str, path: str) -> tuple[int, int]:
        try:
            with open_image(path) as image:
                return image.size
        except Exception as error:          # a decoder raises anything for a damaged file
            said = " ".join(str(error).split())
            raise self.error(field, path, f"the image's size is needed and cannot be read ({said})") from error

    def box(self, field: str, value: object, box_format: str, size: tuple[int, int] | None = None) -> Box:
        """A box of a named convention as plain normalised xyxy."""
        width, height = size or (None, None)
        try:
            if self.settings.box_policy == "keep":
                return _converted(value, box_format, width, height)
            return boxes.normalise(value, box_format, width=width, height=height,
                                   clip=self.settings.box_policy == "clip")
        except boxes.BoxError as error:
            raise self.error(field, value, str(error).partition(": ")[2]) from error

    def question(self, field: str, text: str, images: Sequence[str]) -> str:
        """The text less `<image>` marks that only say "images first", which is what a Sample says anyway."""
        found = text.count(IMAGE)
        if found not in (0, len(images)):
            raise self.error(field, text, f"expected none or {len(images)} {IMAGE}, one an image")
        bare = re.sub(rf"^(?:\n?{IMAGE}\n?)+", "", text)
        return self.as_text(field, text if IMAGE in bare else bare)

    def sample(self, kind: type[Sample] = Sample, *, question: str, **fields) -> Sample:
        question = "\n".join(filter(None, [question, self.settings.instruction]))
        return kind(id=f"{self.settings.name}-{self.index}", source=self.settings.name, question=question, **fields)


def _converted(value: object, box_format: str, width: int | None, height: int | None) -> Box:
    """A box as the reference takes it: four numbers, converted and not looked at again."""
    if box_format not in boxes.FORMATS:
        raise boxes.BoxError(f"box format {box_format!r}: expected one of {', '.join(boxes.FORMATS)}")
    if (not isinstance(value, list) or len(value) != 4
            or not all(isinstance(v, int | float) and math.isfinite(v) for v in value)):
        raise boxes.BoxError(f"box {value!r}: expected four finite numbers")
    return tuple(boxes.FORMATS[box_format][1]([float(v) for v in value], width or 1, height or 1))
