"""Reads the records whose replies hold helper images (Mirage, ILVR, Monet) into a `Sample`.

Sources: the data of UMass-Embodied-AGI/Mirage and XD111ds/ILVR on GitHub, and Monet-SFT-125K of NOVAglow646/Monet.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from lvr_jax.data.record_row import IMAGE, Row
from lvr_jax.data.sample import Sample

MIRAGE_HELPER = "<output_image>"
MONET_HELPER = "<abs_vis_token></abs_vis_token>"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Step:
    """One piece of a reply that mixes text with helper images: `value` is the text, or the path of the image."""

    kind: str           # "text" or "image"
    value: str


@dataclasses.dataclass(frozen=True, eq=False)
class InterleavedSample(Sample):
    """A sample of Mirage, ILVR or Monet: `steps` is the whole reply with its helper images, in order.

    `images` are the user's images only. There are no boxes, as latents stand for whole helper images. `answer` is the
    final answer (see `final_answer`), so that the sample serves where helper images are not used.
    """

    steps: tuple[Step, ...] = ()


def final_answer(text: str) -> str:
    """What a reply answers in the end: its last <answer>...</answer>, else its last \\boxed{...}, else all of it."""
    if tagged := _ANSWER.findall(text):
        return tagged[-1].strip()
    start = text.rfind("\\boxed{")
    if start < 0:
        return text.strip()
    depth, begin = 0, start + len("\\boxed{")
    for end in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[begin:end].strip()
    return ""                               # never closed: the caller refuses an empty answer


def _interleaved(row: Row, images: tuple[str, ...], question: str, steps: Sequence[Step], field: str) -> Sample:
    steps = tuple(step for step in steps if step.value.strip())
    answer = final_answer(steps[-1].value) if steps and steps[-1].kind == "text" else ""
    if not answer:
        raise row.error(field, steps[-1].value if steps else None, "expected a reply that ends in text with an answer")
    return row.sample(InterleavedSample, images=images, question=row.question("question", question, images),
                      answer=answer, steps=steps)


def mirage(row: Row) -> Sample:
    """Mirage: one helper image, at `<output_image>` in the reply, or before all of it where there is no such mark."""
    images, helpers = row.images("image_input"), row.images("image_output")
    before, mark, after = row.text("text_output").partition(MIRAGE_HELPER)
    if len(helpers) != 1:
        raise row.error("image_output", list(helpers), "expected one helper image")
    if MIRAGE_HELPER in after:
        raise row.error("text_output", after, f"expected {MIRAGE_HELPER} at most once")
    before, after = (before, after) if mark else ("", before)
    steps = [Step("text", before), Step("image", helpers[0]), Step("text", after)]
    return _interleaved(row, images, row.text("text_input"), steps, "text_output")


def ilvr(row: Row) -> Sample:
    """ILVR: `sequence_plan` is the reply, step by step, text or helper image."""
    steps = []
    for i, step in enumerate(row.list("sequence_plan")):
        field = f"sequence_plan[{i}]"
        kind = row.part(field, step, "type")
        if kind == "text":
            steps.append(Step("text", row.as_text(f"{field}.content", row.part(field, step, "content"))))
        elif kind == "latent":
            steps.append(Step("image", row.image(f"{field}.helper_image", row.part(field, step, "helper_image"))))
        else:
            raise row.error(f"{field}.type", kind, "expected text or latent")
    return _interleaved(row, row.images("image_input"), row.text("text_input"), steps, "sequence_plan")


def monet(row: Row) -> Sample:
    """Monet: a chat of content lists; each helper image follows a text that holds its empty marker pair.

    The user's texts and images keep their order. Images are named by `image`, or by `image_file_name` in older files.
    The system turn is left to the chat layout. As in the original, a record whose markers and helper images do not
    match is refused.
    """
    turns: list[tuple[object, list[Step]]] = []
    for i, turn in enumerate(row.list("data")):
        field = f"data[{i}]"
        parts = row.as_list(f"{field}.content", row.part(field, turn, "content"))
        turns.append((row.part(field, turn, "role"),
                      [_monet_part(row, f"{field}.content[{j}]", part) for j, part in enumerate(parts)]))
    turns = [turn for turn in turns if turn[0] != "system"]
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise row.error("data", [role for role, _ in turns], "expected one user turn, then one assistant turn")
    (_, asked), (_, reply) = turns
    for n, step in enumerate(reply):
        promised = n > 0 and reply[n - 1].value.count(MONET_HELPER) if step.kind == "image" else 0
        marks = step.value.count(MONET_HELPER) if step.kind == "text" else 0
        followed = n + 1 < len(reply) and reply[n + 1].kind == "image"
        if (step.kind == "image" and promised != 1) or (step.kind == "text" and marks != followed):
            raise row.error("data", step.value, f"expected one {MONET_HELPER} right before each helper image")
    images = tuple(step.value for step in asked if step.kind == "image")
    if not images:
        raise row.error("data", [step.value for step in asked], "expected an image in the user turn")
    row.as_text("data", "".join(step.value for step in asked if step.kind == "text"))
    # A mark takes one line break on either side with it: those of the texts stay.
    question = "".join(step.value if step.kind == "text" else f"\n{IMAGE}\n" for step in asked)
    steps = [Step(step.kind, step.value.replace(MONET_HELPER, "")) for step in reply]
    return _interleaved(row, images, question, steps, "data")


def _monet_part(row: Row, field: str, part: object) -> Step:
    kind = row.part(field, part, "type")
    if kind == "image":
        key = "image" if "image" in part else "image_file_name"
        return Step("image", row.image(f"{field}.{key}", row.part(field, part, key)))
    if kind != "text" or not isinstance(part.get("text"), str):     # blank text between two images is fine
        raise row.error(field, part, "expected a part of type image, or of type text with text")
    return Step("text", part["text"])
