"""Writes out a question with lettered options."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def with_options(question: str, options: Sequence[str]) -> str:
    """The question followed by one "(A) text" line an option, as in V*Bench; without options the question alone."""
    return "\n".join([question, *(f"({letter}) {option}" for letter, option in zip(LETTERS, options))])
