"""What a model replied to one item under one condition: its answer, its latents, and what those are near to."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from lvr_jax.api.pieces import Piece, pieces
from lvr_jax.api.sight import Sight


@dataclasses.dataclass(frozen=True)
class Region:
    """An image token: its place as a box (x0, y0, x1, y1) in pixels of the picture as it was given, and its cosine."""

    box: tuple[float, float, float, float]
    cosine: float
    image: int = 0


@dataclasses.dataclass(frozen=True)
class Attention:
    """Shares of the answer position's attention, which add up to 1: means over heads and layers.

    by_layer: the same by layer, [L] each
    """

    image: float
    latents: float
    text: float
    reply: float
    by_layer: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, shares: np.ndarray) -> Attention | None:
        """shares [L, N, R] by role of the key; None where the reply has no answer position."""
        if not np.isfinite(shares).all():
            return None
        by_layer = dict(zip(("text", "image", "latents", "reply"), shares.mean(1).T))
        return cls(by_layer=by_layer, **{name: float(each.mean()) for name, each in by_layer.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """A reply.

    item, condition: their names
    text: what was said, markers and answer tags included
    tokens: [S] the ids as they are stored; is_latent: [S] bool, a latent is fed instead of the id, which nobody reads
    letter: the option's letter that was read in the text, None without one
    content: what the answer says, normalised: the word before the letter, where the reply has one, else the text of the
        option; None without an answer
    right: whether the content is the known answer's; None where none is known
    probabilities: of the options' letters where the letter is picked, among each other; None without such a place
    margin: logit there of the letter in question over the best other one, in nats: of the right letter where it is
        known, else of the letter of the clean reply; None without such a place
    latents: [Z, D] fp32, as they were fed; stages: whose they are, [Z] names
    attention: of the answer's position, where it was recorded (`Model.ask`)
    missing: the condition had nothing to feed this item (no donor, no box, no latents): the reply is no evidence
    donor: the item whose latents were fed, if any
    """

    item: str
    condition: str
    text: str
    tokens: np.ndarray
    is_latent: np.ndarray
    letter: str | None
    content: str | None
    right: bool | None
    probabilities: dict[str, float] | None
    margin: float | None
    latents: np.ndarray
    stages: tuple[str, ...]
    attention: Attention | None
    missing: bool
    donor: str | None
    _sight: Sight = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return (f"Reply({self.text!r}, letter={self.letter!r}, content={self.content!r}, {len(self.latents)} latents, "
                f"item={self.item!r}, condition={self.condition!r})")  # fmt: skip

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The reply as `Model.stream` gives it: texts, and a mark for every latent that was fed."""
        steps = zip(self.tokens.tolist(), self.is_latent.tolist())
        return list(pieces(steps, self._sight.items.subject.tokenizer.decode))

    @functools.cached_property
    def similarity(self) -> list[np.ndarray]:
        """For each picture, [Z, rows, columns]: cosine of each latent with each of its image tokens."""
        return self._sight.similarity(self.latents)

    @property
    def nearest(self) -> list[list[Region]]:
        """For each latent the three image tokens that it is nearest to, by cosine."""
        return self.regions(3)

    def regions(self, count: int) -> list[list[Region]]:
        """For each latent the `count` image tokens that it is nearest to, by cosine."""
        flat = np.concatenate([m.reshape(len(m), math.prod(m.shape[1:])) for m in self.similarity], 1)      # [Z, M]
        order = np.argsort(-flat, axis=1, kind="stable")[:, :count]
        return [[Region(*self._sight.place(int(m), float(row[m]))) for m in best] for row, best in zip(flat, order)]

    @functools.cached_property
    def lens(self) -> list[list[tuple[str, float]]]:
        """For each latent the five likeliest words if the LM head read it, with their probabilities."""
        return self._sight.lens(self.latents)

    def draw(self, title: str = ""):
        """A matplotlib Figure: the first picture with its box, and a heat map of `similarity` for each latent."""
        return self._sight.draw(self.similarity[0], title)

    def record(self) -> dict:
        """One row of a table: plain values only."""
        return {"item": self.item, "condition": self.condition, "text": self.text, "letter": self.letter,
                "content": self.content, "right": self.right, "margin": self.margin, "latents": len(self.latents),
                "missing": self.missing, "donor": self.donor} | {
                    f"p_{letter}": p for letter, p in (self.probabilities or {}).items()}  # fmt: skip
