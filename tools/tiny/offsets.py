"""Measures whether a checkpoint can reply anywhere: behind newlines, and behind latent blocks that hold true latents.

Replies are read off one teacher-forced pass: greedy decoding writes the expected reply exactly when every token of it
is the most probable one after those before it. A word counts if it is; a letter counts if the reply is right up to it,
so it is the letter that the network writes after its own word.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.data.chat import encode_example
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import ROLE_TEXT, Example, Sample
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.evaluation.subject import Subject, open_subject
from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.models.cross_entropy import weighted_cross_entropy
from lvr_jax.models.layers import Compute

OFFSETS = tuple(range(17))                      # newlines before the reply
LAYOUTS = ("lvr", "p_lvr_2", "p_lvr_3")         # templates whose blocks are filled with true latents
TOKENS, ROWS = 128, 50                          # the longest layout has room


@dataclasses.dataclass(frozen=True)
class Right:
    """Shares of the replies whose word, and whose letter, are right."""

    word: float
    letter: float


def measure(
    folder: str | os.PathLike, items: int, offsets: Sequence[int] = OFFSETS, layouts: Sequence[str] = LAYOUTS,
    scenes: Sequence[Sample] | None = None,
) -> dict[str, Right]:  # fmt: skip
    """By offset ("0", "1", ...) and by layout, on the first `items` scenes; None: whose digits were never trained on.
    """
    subject = open_subject(folder, system="none", dtype=jnp.float32)
    drawn: Any = DigitSearch(items, split="test") if scenes is None else scenes
    samples = [drawn[i] for i in range(items)]
    encode = functools.partial(
        encode_example, tokenizer=subject.tokenizer, answer_format="word_then_letter",
        min_pixels=subject.min_pixels, max_pixels=subject.max_pixels,
    )  # fmt: skip
    plain = [encode(sample, template=TEMPLATES["no_latents"]) for sample in samples]
    newline = int(subject.tokenizer.encode("\n")[0])
    correct = _correct(subject)
    found = {str(n): _right([moved(e, n, newline) for e in plain], subject, correct) for n in offsets}
    for name in layouts:
        found[name] = _right([encode(sample, template=TEMPLATES[name]) for sample in samples], subject, correct)
    return found


def moved(example: Example, count: int, token: int) -> Example:
    """The example with `count` copies of `token` between its prompt and its reply."""
    at = int(np.argmax(example.loss_mask))
    insert = lambda x, value: np.insert(x, at, np.full(count, value, x.dtype))  # noqa: E731
    there = example.positions[:, at, None]
    new = there + np.arange(count, dtype=there.dtype)
    positions = [example.positions[:, :at], new, example.positions[:, at:] + count]
    return dataclasses.replace(
        example, tokens=insert(example.tokens, token), positions=np.concatenate(positions, axis=1),
        vision_slot=insert(example.vision_slot, -1), loss_mask=insert(example.loss_mask, False),
        stage=insert(example.stage, 0), group=insert(example.group, 0), role=insert(example.role, ROLE_TEXT),
    )  # fmt: skip


def _correct(subject: Subject):
    """Jitted: batch -> [B, T], whether each token of the reply is the most probable one."""
    objective, weights = Objective(), Weights(jnp.float32(0), jnp.float32(0))

    @jax.jit
    def correct(params: dict, batch: dict) -> jax.Array:
        model = nnx.merge(subject.graph, params)
        out = objectives.forward(model, batch, objective, weights, jax.random.key(0), Compute(jnp.float32, "blocks"))
        hidden = objectives.before(batch, out["hidden"])
        asked = batch["loss_mask"].astype(jnp.float32)
        return weighted_cross_entropy(hidden, model.unembedding, batch["tokens"], asked)[1][1]

    return functools.partial(correct, subject.params)


def _right(examples: Sequence[Example], subject: Subject, correct) -> Right:
    vision = subject.config.vision
    geometry = Geometry(vision.merge, vision.window)
    windows = max(geometry.size(e).windows for e in examples)
    marks = []
    for first in range(0, len(examples), ROWS):
        part = examples[first : first + ROWS]
        # The last batch is filled up with empty rows: one compiled program.
        rows = [[example] for example in part] + [[]] * (ROWS - len(part))
        batch = collate(rows, Budget(TOKENS, windows), geometry)
        batch["row"] = np.arange(ROWS)
        marks += [_marks(e, right, subject.tokenizer) for e, right in zip(part, np.asarray(correct(batch)))]
    return Right(*np.mean(marks, axis=0).tolist())


def _marks(example: Example, right: np.ndarray, tokenizer: ChatTokenizer) -> tuple[bool, bool]:
    """(word, letter) of one reply: the word is the first token behind the block and its newline, if there is one."""
    letters = [int(tokenizer.encode(f" {letter}")[0]) for letter in "ABCD"]
    letter = max(t for t in np.flatnonzero(example.loss_mask) if example.tokens[t] in letters)
    block = {tokenizer.id(token) for template in TEMPLATES.values() for token in template.tokens}
    block.add(int(tokenizer.encode("\n")[0]))
    word = 1 + max(t for t in range(letter) if example.tokens[t] in block or not example.loss_mask[t])
    return bool(right[word]), bool(right[word : letter + 1].all())
