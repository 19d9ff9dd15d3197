"""Turns a record with boxes (LVR, Visual-CoT, one's own) into a `Sample`.

Every box convention is the format's own and is converted by name, never guessed from the values.
Sources: deepcs233/Visual-CoT on the Hugging Face hub (viscot_363k.json) and the training files of VincentLeebang/lvr
(meta_data_lvr_sft_stage1.json and the files that it names).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lvr_jax.data.options import LETTERS, with_options
from lvr_jax.data.record_row import Row
from lvr_jax.data.sample import Sample

LVR = "<lvr>"
BOX_REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."

_REPLY = re.compile(rf"(?:{LVR}\s*)*<answer> ?((?:(?!</?answer>).)*?) ?</answer>\s*", re.DOTALL)
_CROP = re.compile(r"(.*)###\s*(\[.*\])\s*", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def _turns(row: Row, speakers: Sequence[str]) -> list[str]:
    """The texts of a LLaVA-style conversation with exactly these speakers."""
    turns = row.list("conversations")
    found = [row.part(f"conversations[{i}]", turn, "from") for i, turn in enumerate(turns)]
    if found != list(speakers):
        raise row.error("conversations", turns, f"expected turns from {', '.join(speakers)}")
    return [row.as_text(f"conversations[{i}].value", row.part("", turn, "value")) for i, turn in enumerate(turns)]


def lvr(row: Row) -> Sample:
    """LVR's own format: plain normalised boxes, one `<lvr>` in the reply for each, the answer in <answer> tags."""
    images = row.images("image")
    question, reply = _turns(row, ["human", "gpt"])
    match = _REPLY.fullmatch(reply)
    if match is None and not row.settings.verbatim:
        raise row.error("conversations[1].value", reply,
                        f"expected {LVR} once a box, then <answer> ... </answer> (or read the file verbatim)")
    regions = row.list("bboxs") if row.record.get("bboxs") or LVR in reply else []
    if reply.count(LVR) != len(regions):
        raise row.error("bboxs", regions, f"expected one box for each of {reply.count(LVR)} {LVR} in the reply")
    if regions and len(images) != 1:
        raise row.error("image", list(images), "expected one image, as boxes do not say which image they lie in")
    return row.sample(
        images=images,
        question=row.question("conversations[0].value", question, images),
        answer=row.as_text("conversations[1].value", reply if match is None or row.settings.verbatim else match[1]),
        boxes=tuple(row.box(f"bboxs[{i}]", box, "normalised_xyxy") for i, box in enumerate(regions)),
        category=row.optional_text("dataset"))


def visual_cot(row: Row) -> Sample:
    """Visual-CoT metadata: boxes in pixels of the original image, whose width and height stand in the record."""
    image = row.image("image", row.get("image"))
    for side in ("width", "height"):
        if row.record.get(side) is None:
            raise row.error(side, row.get(side), "expected the image's size, as boxes are in pixels")
    size = row.size("image", image)
    return row.sample(
        images=(image,), question=row.text("question"), answer=row.text("answer"),
        boxes=tuple(row.box(f"bboxs[{i}]", box, "pixel_xyxy", size) for i, box in enumerate(row.list("bboxs"))),
        category=row.optional_text("dataset"))


def viscot_363k(row: Row) -> Sample:
    """`viscot_363k.json`: the box twice, in pixels behind "###" and padded to a square in the reply.

    The pixels are taken, and the record is refused if the two disagree by more than rounding: then nobody knows which
    is right. The image's size comes from its header, as the record has none.
    """
    names = row.list("image")
    crop = _CROP.fullmatch(names[1]) if len(names) == 2 and isinstance(names[1], str) else None
    if crop is None or crop[1] != names[0]:
        raise row.error("image", names, 'expected ["path", "path###[x0, y0, x1, y1]"]')
    image = row.image("image[0]", names[0])
    question, region, _, answer = _turns(row, ["human", "gpt", "human", "gpt"])
    question = row.question("conversations[0].value", question, [image])
    if not question.endswith(BOX_REQUEST):
        raise row.error("conversations[0].value", question, f"expected to end with {BOX_REQUEST!r}")
    width, height = size = row.size("image[0]", image)
    pixels = [float(v) for v in _NUMBER.findall(crop[2])]
    box = row.box("image[1]", pixels, "pixel_xyxy", size)
    padded = [float(v) for v in _NUMBER.findall(region)]
    side = max(width, height)
    shift = ((side - width) // 2, (side - height) // 2)
    tolerance = 1 / side + 1e-3         # pixels are cut to whole ones, the other box to three decimals
    if len(padded) != 4 or any(abs((v + shift[i % 2]) / side - padded[i]) > tolerance for i, v in enumerate(pixels)):
        raise row.error("conversations[1].value", region, f"expected the box {crop[2]} padded to a square, "
                        f"in an image of {width} x {height} (width x height)")
    question = row.as_text("conversations[0].value", question.removesuffix(BOX_REQUEST).rstrip(" "))
    return row.sample(images=(image,), question=question, answer=answer, boxes=(box,),
                      category=row.optional_text("dataset"))


def plain(row: Row) -> Sample:
    """A folder of one's own; see `records.plain_folder` for its fields."""
    if ("image" in row.record) == ("images" in row.record):
        raise row.error("image", row.get("image"), "expected one of image and images")
    images = row.images("image" if "image" in row.record else "images")
    answer, letter = row.text("answer"), None
    options: tuple[str, ...] = ()
    if "options" in row.record:
        options = tuple(row.as_text(f"options[{i}]", option) for i, option in enumerate(row.list("options")))
        letters = LETTERS[:len(options)]
        if len(set(options)) != len(options) or len(options) > len(LETTERS):
            raise row.error("options", list(options), f"expected at most {len(LETTERS)} options, all different")
        if answer not in options and answer not in tuple(letters):
            raise row.error("answer", answer, f"expected one of the options or one of the letters {letters}")
        answer = answer if answer in options else options[letters.index(answer)]
        letter = letters[options.index(answer)]
    box_format = row.record.get("box_format", "normalised_xyxy")
    regions = row.list("boxes") if row.record.get("boxes") not in (None, []) else []
    if regions and len(images) != 1:
        raise row.error("boxes", regions, "expected one image, as boxes do not say which image they lie in")
    size = row.size("image", images[0]) if regions and box_format != "normalised_xyxy" else None
    return row.sample(
        images=images, question=with_options(row.question("question", row.text("question"), images), options),
        answer=answer, letter=letter, options=options, category=row.optional_text("category"),
        boxes=tuple(row.box(f"boxes[{i}]", box, box_format, size) for i, box in enumerate(regions)))
