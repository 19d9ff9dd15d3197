"""Makes a training file on disk a grain data source of `Sample`s.

    source = RecordSource("data/sroie_cot_train.jsonl", "visual_cot", image_folder="images/sroie")
    sources = lvr_meta("data/meta_data_lvr_sft_stage1.json")
    source = plain_folder("my_set")

A damaged record raises RecordError when it is asked for, never before and never silently: the pipeline counts and
lists them. What is wrong with a whole file (missing, empty, not a list) is a DataError at construction.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from lvr_jax.data import record_formats as boxed
from lvr_jax.data import record_formats_interleaved as interleaved
from lvr_jax.data.record_files import RecordFile, is_remote
from lvr_jax.data.record_row import BOX_POLICIES, Row, Settings
from lvr_jax.data.sample import DataError, Sample

FORMATS: dict[str, Callable[[Row], Sample]] = {
    "lvr": boxed.lvr,                           # the rows that an LVR meta file lists
    "visual_cot": boxed.visual_cot,             # Visual-CoT, metadata/*_cot_train.jsonl
    "viscot_363k": boxed.viscot_363k,           # Visual-CoT, viscot_363k.json
    "plain": boxed.plain,
    "mirage": interleaved.mirage,
    "ilvr": interleaved.ilvr,
    "monet": interleaved.monet,                 # Monet-SFT-125K, */train.json
}
SHORT_ANSWER = "Provide a short and direct response."       # the line LVR added to the questions of Visual-CoT


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """The records of one file as a grain `RandomAccessDataSource`; paths are local or gs://.

    `format` is a key of FORMATS. `image_folder` is what image names are relative to (default: the file's own folder);
    images are only named, never read here, except for the header where a box needs the image's size. `check_images`
    looks whether each is there, which costs a request an image when remote.
    `name` (default: the file's name without suffix) becomes `Sample.source` and starts every `Sample.id`.
    `instruction` is a line added to every question: LVR trained on Visual-CoT with SHORT_ANSWER there.

    `box_policy` says what happens to a box that sticks out of its image: "refuse" it, "clip" it to the image (one
    wholly outside or without area is refused all the same), or "keep" its numbers as they are. The official code
    checks nothing, so "keep" (with unchecked boxes further on) is its data: of dude's 11,735 boxes 836 are unsound,
    up to 17,686 px outside, and "clip" saves 306 of them.
    `verbatim` (format "lvr" only): the whole reply, with its `<lvr>`, becomes `Sample.answer`.

    Construction scans the file once (350 MB of JSON list: seconds). A pickled source takes its index along, two
    offsets a record, and maps the file anew in each worker process.
    """

    path: str
    format: str
    image_folder: str | None = None
    name: str = ""
    instruction: str = ""
    box_policy: str = "refuse"
    check_images: bool = True
    verbatim: bool = False
    _file: RecordFile = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        path = os.fspath(self.path)
        for field, allowed in (("format", FORMATS), ("box_policy", BOX_POLICIES)):
            if getattr(self, field) not in allowed:
                raise DataError(f"{path}: {field} {getattr(self, field)!r}, expected one of {', '.join(allowed)}")
        if self.verbatim and self.format != "lvr":
            raise DataError(f"{path}: verbatim with format {self.format!r}, expected format 'lvr'")
        folder = os.path.dirname(path) if self.image_folder is None else os.fspath(self.image_folder)
        name = self.name or os.path.splitext(os.path.basename(path))[0]
        for field, value in (("path", path), ("image_folder", folder), ("name", name), ("_file", RecordFile(path))):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> Sample:
        settings = Settings(os.fspath(self.image_folder or ""), self.name, self.instruction, self.box_policy,
                            self.check_images, self.verbatim)
        return FORMATS[self.format](Row(self.record(index), self.path, index, settings))

    def record(self, index: int) -> dict:
        """The record as it stands in the file, with the fields that a Sample leaves out (such as the image's size)."""
        return self._file.read(index)


def lvr_meta(path: str | os.PathLike, **settings) -> tuple[RecordSource, ...]:
    """The data sets that an LVR meta file lists: `[{ds_name, data_path, image_folder, ...}]`, one source each.

    Relative paths in it are relative to the meta file. `settings` go to every RecordSource. The official code draws
    a source with probability in proportion to its length.
    """
    path = os.fspath(path)
    entries = RecordFile(path)
    sources = []
    for i in range(len(entries)):
        entry = Row(entries.read(i), path, i, Settings())
        data_path, image_folder = (_beside(path, entry.text(field)) for field in ("data_path", "image_folder"))
        sources.append(RecordSource(data_path, "lvr", image_folder, entry.text("ds_name"), **settings))
    return tuple(sources)


def plain_folder(folder: str | os.PathLike, **settings) -> RecordSource:
    """A data set of one's own: `folder/records.jsonl`, and images named relative to `folder`.

    One JSON object a line:
        image or images     a file name, or a list of them
        question            text; `<image>` in it says where an image stands, else images come first
        answer              text; with options, one of them or its letter
        options             optional list of texts; lettered A, B, ... and written under the question by the reader
        boxes               optional list of four numbers each, one box a latent block, in the only image
        box_format          of the boxes: normalised_xyxy (the default), pixel_xyxy, pixel_xywh or padded_square_xyxy
        width, height       optional size of the image, for the other formats; else its header is read
        category            optional text, for reports
    """
    folder = os.fspath(folder).rstrip("/")
    return RecordSource(f"{folder}/records.jsonl", "plain", folder, **{"name": os.path.basename(folder), **settings})


def _beside(file: str, path: str) -> str:
    """`path` if it stands on its own, else relative to the folder of `file`."""
    if is_remote(path) or os.path.isabs(path):
        return path
    folder = os.path.dirname(file)
    return f"{folder}/{path}" if is_remote(folder) else os.path.join(folder, path)
