"""Which records flow through the input pipeline: a `Sample` as read, an `Example` as the model will see it.

A `Sample` is plain Python, one question about one or more images. An `Example` is NumPy, unpadded and laid out
token by token; packing and batching only concatenate and pad it. Shape letters: T tokens, P 14-px patches, M merged
vision tokens (P / 4), n images.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

Box = tuple[float, float, float, float]
ImageSource = str | os.PathLike | bytes | np.ndarray     # a local or gs:// path, an encoded file, uint8 [H, W, 3]

# Example.role: what a token is to attention routing and to the losses.
ROLE_TEXT = 0        # system turn, question, every other prompt token
ROLE_IMAGE = 1       # image placeholders
ROLE_LATENT = 2      # a stage's start marker and its slots
ROLE_ANSWER = 3      # the rest of the response: end markers, answer, <|im_end|>, final newline


class DataError(ValueError):
    """Bad input data, said in one line: what it is, where it is, what was expected."""


class SampleError(DataError):
    """A record that cannot become an example."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One question about one or more images, before any tokenizer or resize has seen it.

    `question` is the full text of the user turn, options written out; images come first unless the text holds
    `<image>` placeholders. `answer` is what goes in the reply and `letter` the option letter, if there is one: the
    answer format decides how the two are written. `options` are the option texts, for scoring and for reports.

    `boxes` are float64 normalised xyxy, one per latent block in the order of the reply. Box i lies in image
    `box_images[i]`; an empty `box_images` means image 0 for all.

    `input_images`, when set, is what the model sees while latents (targets and teacher-forced inputs) come from
    `images`: same number, same sizes. The masked-box control and oracle-strip tasks are made this way.

    `more`: further questions about the same images; of them only what differs by question is read.
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    answer: str
    options: tuple[str, ...] = ()
    letter: str | None = None
    boxes: tuple[Box, ...] = ()
    category: str = ""
    source: str = ""                                    # name of the data set, for mixing and for reports
    input_images: tuple[ImageSource, ...] | None = None
    box_images: tuple[int, ...] = ()
    more: tuple[Sample, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One tokenised, laid-out sequence: what the device needs and nothing that it could work out cheaper itself."""

    id: str
    category: str
    tokens: np.ndarray              # [T] int32
    positions: np.ndarray           # [3, T] int32, M-RoPE ids: time, row, column
    # [T] int32: raster index into the example's concatenated merged vision tokens, or -1. Set at image placeholders
    # and at teacher-forced latents (there it counts in target_patches where the example has them).
    vision_slot: np.ndarray
    loss_mask: np.ndarray           # [T] bool: token t is a cross-entropy target (response text, never a slot)
    stage: np.ndarray               # [T] int8: 1 + index of the template's stage at latent and free slots, else 0
    group: np.ndarray               # [T] int32: 1-based running number of (box, stage) at slots, else 0
    role: np.ndarray                # [T] int8: ROLE_*
    patches: np.ndarray             # [P, 588] uint8, merge-block order, columns channel x 14 x 14
    grids: np.ndarray               # [n, 3] int32: t, h, w in 14-px patches
    target_patches: np.ndarray | None = None    # [P, 588] uint8, same grids: where latents come from, if elsewhere
    # [N, 2] int32 rows (token position, merged index), sorted by position: a latent listed here is the MEAN of its
    # merged tokens (pooled targets). Empty when latents are single tokens. At a pooled position vision_slot holds the
    # first of its tokens, so "slot >= 0" means the same with and without pooling.
    latent_pool: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    # [T] int32 where several questions share the images (data.branches): 0 for what they share, else 1 + the number of
    # the question. None: one question.
    branch: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_patches(self) -> int:
        return len(self.patches)
