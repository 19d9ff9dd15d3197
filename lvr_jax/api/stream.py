"""A reply that is read while it is decoded."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from lvr_jax.api.pieces import Piece
from lvr_jax.api.reply import Reply


class Stream(Iterator[Piece]):
    """A reply while it is decoded. Made by `Model.stream`.

        stream = model.stream("photo.jpg", "What colour is the cup?")
        for piece in stream:
            print(piece, end="", flush=True)
        stream.reply.letter

    Whoever stops reading stops the decoding.
    """

    def __init__(self, made: Generator[Piece, None, Reply]):
        self._made = made
        self._reply: Reply | None = None

    def __next__(self) -> Piece:
        try:
            return next(self._made)
        except StopIteration as end:
            self._reply = self._reply or end.value
            raise

    @property
    def reply(self) -> Reply:
        """The whole reply, as `Model.ask` gives it; what is not decoded yet is decoded now."""
        for _ in self:
            pass
        if self._reply is None:
            raise RuntimeError("the stream was broken off by an error, and has no reply")
        return self._reply
