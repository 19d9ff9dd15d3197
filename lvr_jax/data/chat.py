"""Lays out a question with its images, latents and answer as one sequence.

The layout is the one that LVR checkpoints were trained on: system turn, user turn with the images' placeholders,
assistant turn with one latent block a box (what a block looks like is the template's business) and the answer.
Sources: cosine-misleads `src/dataset/data_utils.py`, `lvr_sft_dataset_packed.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lvr_jax.data import images as image_rules
from lvr_jax.data.branches import join
from lvr_jax.data.chat_template import TemplateError, render
from lvr_jax.data.filler import draw_filler
from lvr_jax.data.sample import (
    ROLE_ANSWER,
    ROLE_IMAGE,
    ROLE_LATENT,
    ROLE_TEXT,
    Example,
    ImageSource,
    Sample,
    SampleError,
)
from lvr_jax.data.templates import NO_LATENTS, LatentSlots, SequenceTemplate, latent_slots
from lvr_jax.data.tokenizers import IM_END, IM_START, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, ChatTokenizer
from lvr_jax.models.layout import mrope_positions

DEFAULT_SYSTEM = "You are a helpful assistant."
RESERVED = (IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)      # the layout's own, not for texts
LATENT_PLACEHOLDER = "<lvr>"        # in the text of records; not a token
IMAGE_PLACEHOLDER = re.compile(r"\n?<image>\n?")

# How answer and letter are written. The inner spaces keep the letter a token of its own. "verbatim" takes the whole
# reply from the record, latent placeholders included.
ANSWER_FORMATS = {
    "tagged": "<answer> {answer} </answer>",
    "tagged_letter": "<answer> {letter} </answer>",
    "word": "{answer}",
    "letter": "{letter}",
    "word_then_letter": "{answer} <answer> {letter} </answer>",
    "verbatim": "{answer}",
}


# What a token has besides its id: name in Example, type, value unless said otherwise.
COLUMNS = (
    ("role", np.int8, ROLE_TEXT), ("loss_mask", bool, False), ("stage", np.int8, 0), ("group", np.int32, 0),
    ("vision_slot", np.int32, -1),
)  # fmt: skip


class _Sequence:
    """The token arrays of an example under construction."""

    def __init__(self) -> None:
        self.parts: list[tuple[Sequence[int] | np.ndarray, dict]] = []
        self.pool: list[tuple[int, int]] = []
        self.length = 0

    def add(self, ids: Sequence[int] | np.ndarray, **columns) -> None:
        """columns: by their names in COLUMNS, one value for all of `ids` or one for each."""
        self.parts.append((ids, columns))
        self.length += len(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.full(self.length, value, dtype) for name, dtype, value in COLUMNS}
        arrays["tokens"] = tokens = np.empty(self.length, np.int32)
        start = 0
        for ids, columns in self.parts:
            stop = start + len(ids)
            tokens[start:stop] = ids
            for name, value in columns.items():
                arrays[name][start:stop] = value
            start = stop
        return arrays | {"latent_pool": np.asarray(self.pool, np.int32).reshape(-1, 2)}


def _content(sample: Sample) -> list[dict]:
    """The user turn as content parts: images where the text has `<image>`, else all of them first."""
    texts = IMAGE_PLACEHOLDER.split(sample.question)
    if len(texts) == 1:
        texts = [""] * len(sample.images) + texts
    if len(texts) - 1 != len(sample.images):
        raise SampleError(
            f"sample {sample.id}: {len(texts) - 1} <image> in the question for {len(sample.images)} images"
        )
    parts = []
    for i, text in enumerate(texts):
        parts += [{"type": "image"}] if i else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def render_prompt(tokenizer: ChatTokenizer, content: Sequence[dict], system: str = DEFAULT_SYSTEM) -> str:
    """System turn, user turn and the assistant's header, one `<|image_pad|>` an image.

    Through the checkpoint's chat template where it has one, else as Qwen's template writes it. An empty `system`
    leaves the system turn to the template (Qwen's then writes its default). Raises SampleError if the template does
    not write one placeholder an image (that of a text-only model).
    """
    images = sum(part["type"] == "image" for part in content)
    if tokenizer.chat_template:
        messages: list[dict] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": list(content)})
        try:
            text = render(tokenizer.chat_template, messages, tokenizer.source)
        except TemplateError as error:
            raise SampleError(str(error)) from error
    else:
        image = VISION_START + IMAGE_PAD + VISION_END
        user = "".join(image if part["type"] == "image" else part["text"] for part in content)
        text = (
            f"{IM_START}system\n{system or DEFAULT_SYSTEM}{IM_END}\n"
            f"{IM_START}user\n{user}{IM_END}\n{IM_START}assistant\n"
        )
    if text.count(IMAGE_PAD) != images:
        raise SampleError(
            f"chat template of {tokenizer.source}: {text.count(IMAGE_PAD)} {IMAGE_PAD} for {images} images"
        )
    return text


def _response_text(sample: Sample, template: SequenceTemplate, answer_format: str) -> list[str]:
    """The texts of the reply: what precedes the first latent block, then what follows each."""
    if answer_format not in ANSWER_FORMATS:
        raise SampleError(f"answer format {answer_format!r}: expected one of {', '.join(ANSWER_FORMATS)}")
    pattern = ANSWER_FORMATS[answer_format]
    for field in ("answer", "letter"):
        if f"{{{field}}}" in pattern and not (getattr(sample, field) or "").strip():
            raise SampleError(f"sample {sample.id}: no {field}, answer format {answer_format!r} needs one")
    text = pattern.format(answer=sample.answer, letter=sample.letter)
    if answer_format != "verbatim":
        _refuse_reserved(sample.id, "answer", text, (LATENT_PLACEHOLDER,))
        text = f"{LATENT_PLACEHOLDER}\n" * len(sample.boxes) + text
    first, *rest = text.split(LATENT_PLACEHOLDER)
    if len(rest) != len(sample.boxes):
        raise SampleError(
            f"sample {sample.id}: {len(rest)} {LATENT_PLACEHOLDER} in the answer for {len(sample.boxes)} boxes"
        )
    if not rest:
        return [first]
    if not template.stages:     # nothing is left of a block, nor of the newline that set it off
        rest = [segment.removeprefix("\n") for segment in rest]
    return ["", *rest]          # text before the first block is dropped, as the official code does


def _refuse_reserved(sample_id: str, field: str, text: str, reserved: Sequence[str]) -> None:
    for token in reserved:
        if token in text:
            raise SampleError(f"sample {sample_id}: {field} holds {token!r}, which is reserved for the layout")


def _load(sources: Sequence[ImageSource], sample: Sample, **limits) -> tuple[np.ndarray, np.ndarray]:
    """All images of a sample -> patches [P, 588] uint8 and grids [n, 3] int32."""
    patches, grids = [], []
    for source in sources:
        try:
            cut, grid = image_rules.patchify(image_rules.prepare_image(source, **limits))
        except image_rules.ImageError as error:
            raise image_rules.ImageError(f"sample {sample.id}: {error}") from error
        patches.append(cut)
        grids.append(grid)
    if not patches:
        patches = [np.zeros((0, image_rules.PATCH_COLUMNS), np.uint8)]
    joined = patches[0] if len(patches) == 1 else np.concatenate(patches)
    return joined, np.asarray(grids, np.int32).reshape(-1, 3)


def _load_both(sample: Sample, **limits) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """What the model sees, where latents come from if that is elsewhere, and their common grids."""
    targets, grids = _load(sample.images, sample, **limits)
    if sample.input_images is None:
        return targets, None, grids
    patches, seen = _load(sample.input_images, sample, **limits)
    if not np.array_equal(seen, grids):
        raise SampleError(
            f"sample {sample.id}: input_images have grids {seen.tolist()}, images {grids.tolist()}; expected the same"
        )
    return patches, targets, grids


def _add_prompt(sequence: _Sequence, sample: Sample, tokenizer, template, grids, system: str) -> None:
    content = _content(sample)
    _refuse_reserved(sample.id, "question", sample.question, (*RESERVED, *template.tokens))
    ids = tokenizer.encode(render_prompt(tokenizer, content, system))
    image_pad = tokenizer.id(IMAGE_PAD)
    repeats = np.ones(len(ids), np.int64)
    repeats[ids == image_pad] = grids.astype(np.int64).prod(axis=1) // image_rules.MERGE**2
    ids = np.repeat(ids, repeats)
    is_image = ids == image_pad
    slot = np.where(is_image, np.cumsum(is_image) - 1, -1)
    sequence.add(ids, role=np.where(is_image, ROLE_IMAGE, ROLE_TEXT), vision_slot=slot)


def _add_block(sequence: _Sequence, groups: Sequence[LatentSlots], tokenizer, template: SequenceTemplate) -> None:
    for slots in groups:
        stage = template.stages[slots.stage]
        sequence.add([tokenizer.id(stage.start)], role=ROLE_LATENT, loss_mask=True)
        if slots.sources:
            if template.pool is not None:
                sequence.pool += [(sequence.length + i, m) for i, own in enumerate(slots.sources) for m in own]
            sequence.add(
                [tokenizer.id(stage.slot)] * len(slots.sources),
                role=ROLE_LATENT,
                stage=1 + slots.stage,
                group=1 + slots.box * len(template.stages) + slots.stage,
                vision_slot=[own[0] if len(own) else -1 for own in slots.sources],
            )
        ends = [template.latent_end, stage.end] if template.latent_end else [stage.end]
        sequence.add([tokenizer.id(token) for token in ends], role=ROLE_ANSWER, loss_mask=True)


def _finish(sequence: _Sequence, sample: Sample, tokenizer, patches, targets, grids) -> Example:
    arrays = sequence.arrays()
    positions, _ = mrope_positions(
        arrays["tokens"],
        grids,
        image_token_id=tokenizer.id(IMAGE_PAD),
        video_token_id=tokenizer.backend.token_to_id(VIDEO_PAD),
    )
    return Example(
        id=sample.id,
        category=sample.category,
        positions=positions,
        patches=patches,
        target_patches=targets,
        grids=grids,
        **arrays,
    )


def encode_example(
    sample: Sample,
    tokenizer: ChatTokenizer,
    template: SequenceTemplate,
    *,
    min_pixels: int,
    max_pixels: int,
    answer_format: str = "tagged",
    system: str = DEFAULT_SYSTEM,
    protocol: str = "train",
    box_rule: str = "packed",
    check_boxes: bool = True,
    filler: int = 0,
) -> Example:
    """A training example: prompt, one latent block a box, answer, `<|im_end|>` and the newline after it.

    filler: 0 to so many tokens, drawn by `draw_filler`, precede the reply. A sample without boxes has no block. Further
    questions about the images (`Sample.more`) follow as branches of the first one's sequence.
    Cross-entropy falls on every response token except the slots. Raises a DataError that names the sample for an
    unreadable image, a bad box (unless check_boxes is False: see `latent_slots`), a missing answer or letter, reserved
    tokens in a text, or counts that do not agree.
    """
    patches, targets, grids = _load_both(sample, min_pixels=min_pixels, max_pixels=max_pixels, protocol=protocol)

    def one(question: Sample) -> Example:
        texts = _response_text(question, template, answer_format)
        for text in texts:
            _refuse_reserved(question.id, "answer", text, (*RESERVED, *template.tokens))
        slots = latent_slots(question, grids, template, box_rule=box_rule, check_boxes=check_boxes)
        sequence = _Sequence()
        _add_prompt(sequence, question, tokenizer, template, grids, system)
        if filler:
            ids, cells = draw_filler(question.id, tokenizer, filler, len(patches) // image_rules.MERGE**2)
            sequence.add(ids, vision_slot=cells)
        for i, text in enumerate(texts):        # text i follows block i - 1
            _add_block(sequence, [group for group in slots if group.box == i - 1], tokenizer, template)
            text += f"{IM_END}\n" if i == len(texts) - 1 else ""
            sequence.add(tokenizer.encode(text), role=ROLE_ANSWER, loss_mask=True)
        return _finish(sequence, question, tokenizer, patches, targets, grids)

    return join([one(sample), *map(one, sample.more)]) if sample.more else one(sample)


def encode_prompt(
    sample: Sample,
    tokenizer: ChatTokenizer,
    template: SequenceTemplate = NO_LATENTS,
    *,
    min_pixels: int,
    max_pixels: int,
    system: str = DEFAULT_SYSTEM,
    protocol: str = "evaluate",
    suffix: str = "",
) -> Example:
    """A prompt for inference, up to and with the assistant's header; then `suffix`, such as a forced start marker.

    The same record with nothing to learn: no loss, no slots beyond the images'. What the model sees is
    `input_images` where the sample has them, with `images` as target_patches (for oracle latents). The template only
    says which tokens of the suffix are start markers. Raises as `encode_example`.
    """
    patches, targets, grids = _load_both(sample, min_pixels=min_pixels, max_pixels=max_pixels, protocol=protocol)
    sequence = _Sequence()
    _add_prompt(sequence, sample, tokenizer, template, grids, system)
    ids = tokenizer.encode(suffix)
    starts = [tokenizer.id(stage.start) for stage in template.stages]
    sequence.add(ids, role=np.where(np.isin(ids, starts), ROLE_LATENT, ROLE_ANSWER))
    return _finish(sequence, sample, tokenizer, patches, targets, grids)
