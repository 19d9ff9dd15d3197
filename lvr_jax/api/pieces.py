"""Cuts a reply into pieces: text as soon as its characters are whole, and a mark for every latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

_HALF = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one step adds to a reply: text, or a latent, by its number among those of the reply (0, 1, ...)."""

    text: str
    latent: int | None = None

    def __str__(self) -> str:
        return self.text if self.latent is None else f"[latent {self.latent}]"


def pieces(
    steps: Iterator[tuple[int, bool]], decode: Callable[[Sequence[int]], str]
) -> Generator[Piece, None, Any]:  # fmt: skip
    """The pieces of (token, whether a latent is fed instead of it); returns what `steps` returns. Texts joined are the
    text of all tokens together: a token that ends within a character waits for the rest of it."""
    tokens: list[int] = []
    said = latents = 0
    while True:
        try:
            token, latent = next(steps)
        except StopIteration as end:
            result = end.value
            break
        if latent:
            yield Piece("", latents)
            latents += 1
            continue
        tokens.append(token)
        text = decode(tokens)
        if len(text) > said and not text.endswith(_HALF):
            yield Piece(text[said:])
            said = len(text)
    rest = decode(tokens)[said:]
    if rest:
        yield Piece(rest)
    return result
