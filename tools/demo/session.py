"""Asks one open checkpoint one question under every condition at once, with shapes that stay, so that nothing compiles
again: sigma, the chosen latents and the donor are numbers of the same compiled sweep.

Knows nothing of a browser. Donor and mean latents come from a few generated scenes that are read when a checkpoint is
opened; a picture of one's own has no other items beside it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

import numpy as np

import lvr_jax
from lvr_jax.api.conditions import Condition
from lvr_jax.api.questions import Item, options_of
from lvr_jax.api.reply import Reply
from lvr_jax.api.sweep import Sweep
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.sample import Sample
from lvr_jax.latents import conditions as engine

DONORS = 8          # generated scenes whose latents may be fed instead
SCENES = 1000       # that can be drawn
NOISE, RELATIVE, OTHER, MEAN, CUT, CUT_MEAN = (
    "noise", "relative noise", "another scene's", "mean of scenes", "chosen: zero", "chosen: mean"
)  # fmt: skip
# Conditions of the engine by name, and what a person reads; `BOXED` need to know where the answer is to be seen.
PLAIN = {
    "zero": "zeros", "norm_matched": "random, same norm", "unit_normal": "random, N(0, I)",
    "permuted": "own, reordered", "first_repeat": "own first, repeated", "self": "own, fed again (sham)",
    "slot_embedding": "embedding of the slot",
    "markers_only": "none, between markers", "start_only": "none, no end marker", "format_only": "no block at all",
    "answer_blind_to_latents": "answer does not see latents", "latents_blind_to_image": "latents do not see the image",
    "answer_blind_to_image": "answer does not see the image",
}  # fmt: skip
BOXED = {
    "oracle": "tokens of the answer's box", "wrong_box": "tokens of another box", "box_budget": "as many as the box",
}  # fmt: skip
# In the order of the table: what the page's controls change comes first.
LABELS = {
    "clean": "as the model makes them", CUT: "knocked out: zero", CUT_MEAN: "knocked out: the mean",
    NOISE: "plus noise, sigma", RELATIVE: "plus noise, sigma x norm", OTHER: "another scene's",
    MEAN: f"mean of {DONORS} scenes", **PLAIN, **BOXED,
}  # fmt: skip


def scene(number: int) -> Sample:
    """One of the generated scenes; those of the donors are others."""
    return DigitSearch(size=SCENES, split="test", seed=0)[number % SCENES]


@dataclasses.dataclass(frozen=True)
class Row:
    """The answer under one condition: plain values.

    shift: of the margin against the clean reply, in nats; missing: there was nothing to feed
    """

    condition: str
    label: str
    text: str
    content: str | None
    letter: str | None
    probabilities: dict[str, float]
    shift: float | None
    changed: bool
    right: bool | None
    missing: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The clean reply, with its latents and what they are near to, and a row for every condition."""

    reply: Reply
    rows: tuple[Row, ...]
    donor: str
    seconds: float


class Session:
    """One checkpoint. Made once and asked often; not for several threads at a time."""

    def __init__(self, checkpoint: str | os.PathLike, **options):
        self.model = lvr_jax.open(checkpoint, **options)
        self.name = "/".join(os.path.normpath(os.fspath(checkpoint)).split(os.sep)[-3:])
        self.text_only = not self.model.subject.has_latents
        self.pool = np.zeros((DONORS, 0, 0), np.float32)        # [DONORS, Z, D], as a condition's function sees latents
        self.said: list[str] = [""] * DONORS
        if not self.text_only:
            self._read_donors()

    @property
    def latents(self) -> int:
        """Z, the longest block: what `chosen` counts."""
        return 0 if self.text_only else self.model.latents

    def _read_donors(self) -> None:
        def kept(latents: np.ndarray) -> np.ndarray:
            self.pool = np.array(latents, np.float32)
            return latents

        scenes = lvr_jax.scenes(DONORS, seed=1)
        swept = self.model.sweep(scenes, lvr_jax.conditions.condition(kept, "kept"))
        self.said = [reply.content or "" for reply in swept["clean"]]

    def conditions(self, boxed: bool, sigma: float, chosen: Sequence[int], donor: int) -> list[Condition]:
        """All conditions, always as many and in the same order; rows of `chosen` mean nothing where it is empty.

        The noise of a latent is the same for every sigma: its key is the condition's name.
        """
        named = lambda name, **fields: Condition(engine.Condition(name, kind=name, **fields))  # noqa: E731
        steps = tuple(sorted(set(chosen))) or (0,)
        given = lambda latents: np.broadcast_to(self.pool[donor][None], latents.shape)  # noqa: E731
        mean = lambda latents: np.broadcast_to(self.pool.mean(0)[None], latents.shape)  # noqa: E731
        fed = lvr_jax.conditions.condition(mean, MEAN)
        cut = engine.Condition(CUT_MEAN, keep=0.0, mix=1.0, source=fed.record.source, steps=steps)
        return [
            *(lvr_jax.conditions.condition(name) for name in (*PLAIN, *(BOXED if boxed else ()))),
            named(NOISE, sigma=sigma), named(RELATIVE, sigma=sigma, noise=engine.RELATIVE),
            named(CUT, keep=0.0, steps=steps), lvr_jax.conditions.condition(given, OTHER), fed,
            Condition(cut, fed.function),
        ]  # fmt: skip

    def answer(self, item: Item | Sample, sigma: float = 1.0, chosen: Sequence[int] = (), donor: int = 0) -> Answer:
        """Asks under all conditions. Raises what `Model.sweep` raises; SessionError for numbers out of range."""
        if not np.isfinite(sigma) or sigma < 0:
            raise SessionError(f"sigma is {sigma}, expected a number of at least 0")
        if not 0 <= donor < DONORS or any(not 0 <= each < max(self.latents, 1) for each in chosen):
            raise SessionError(f"donor {donor}, latents {list(chosen)}: expected 0 to {DONORS - 1}, and latents below "
                               f"{self.latents}")  # fmt: skip
        began = time.perf_counter()
        boxed = bool(item.boxes) if isinstance(item, Sample) else item.box is not None
        asked = [] if self.text_only else self.conditions(boxed, float(sigma), chosen, donor)
        swept = self.model.sweep(item, asked, attention=True)
        skipped = set() if chosen else {CUT, CUT_MEAN}
        rows = tuple(_row(name, swept) for name in swept if name not in skipped)
        return Answer(swept["clean"][0], rows, self.said[donor], time.perf_counter() - began)


class SessionError(ValueError):
    """A number that the page does not offer."""


def _row(name: str, swept: Sweep) -> Row:
    clean, reply = swept["clean"][0], swept[name][0]
    shift = None if reply.margin is None or clean.margin is None else reply.margin - clean.margin
    return Row(name, LABELS[name], reply.text, reply.content, reply.letter, dict(reply.probabilities or {}), shift,
               reply.content != clean.content, reply.right, reply.missing)  # fmt: skip


def own_item(picture: np.ndarray, question: str, options: str, drawn: Sample | None) -> Item | Sample:
    """What the page asks: the drawn scene as it was trained on where nothing was edited, else a question of one's own.

    options: as questions.options_of reads them, none for an open question
    """
    offered = list(filter(None, options_of(options)))
    if drawn is not None and (question.strip(), tuple(offered)) == (plain_question(drawn), drawn.options):
        return drawn
    if drawn is None or drawn.answer not in offered:
        return Item(picture, question, offered or None, id="asked")
    return Item(picture, question, offered, answer=drawn.answer, box=drawn.boxes[0], id="asked")


def plain_question(sample: Sample) -> str:
    """The question without the lines of its options."""
    return sample.question.split("\n(A)")[0]
