"""Reads what a reply says, beside the letter that it picks: the content of its answer, and whether the two agree.

An option's letter is drawn anew for every question, so that copying it is a skill of its own, which fails for reasons
of its own: a reply can name the right word and pick another option's letter. The content of a reply is the word that
stands before its marked answer, where the checkpoint's format has such a word; where replies are letters alone, it is
the text of the option that the letter picks.
"""

import dataclasses
import re
from collections.abc import Sequence

from lvr_jax.evaluation.extraction import SPECIAL, plain_text
from lvr_jax.evaluation.results import Result
from lvr_jax.evaluation.rows import Row


@dataclasses.dataclass(frozen=True)
class Said:
    """content: of the answer, normalised, None without one; right: it is the gold answer's.

    follows: whether the letter is that of the reply's own word; None where letters are all there is, one of the two is
    missing, or the word is not among the item's options. readable: there is an answer of either kind.
    """

    content: str | None
    right: bool
    follows: bool | None
    readable: bool


def word_before(reply: str, mark: re.Pattern | None = None) -> str:
    """What leads to the last marked answer (`<answer>`, or a pattern), normalised: the last line that has any text.

    A special token ends a line, too: a model that was denied its latents may name the word once more after a marker.
    reply: what was said, without the ids that are stored at latent steps; without a mark all of it leads
    """
    found = list(mark.finditer(reply)) if mark else []
    cut = found[-1].start() if found else reply.rfind("<answer>")
    lines = map(plain_text, SPECIAL.sub("\n", reply if cut < 0 else reply[:cut]).splitlines())
    return next(filter(None, reversed(list(lines))), "")


@dataclasses.dataclass(frozen=True)
class ContentReader:
    """rows: of the benchmark; worded: its replies have a word before the letter; words: every option's text."""

    rows: Sequence[Row]
    worded: bool
    words: frozenset[str]

    @classmethod
    def of(cls, rows: Sequence[Row], found: Sequence[str]) -> "ContentReader":
        """found: each item's word under no intervention. The format has words if half of them are some option's text:
        reasoning in front of a letter is none."""
        words = frozenset(filter(None, (plain_text(text) for row in rows for text in row.choices.values())))
        return cls(rows, 2 * sum(word in words for word in found) >= max(len(found), 1), words)

    def read(self, i: int, word: str, letter: str | None) -> Said:
        """Item i's reply: its word, and the letter that an extraction rule found in it."""
        row = self.rows[i]
        if not row.choices:                                             # an open question: the answer is the content
            return Said(letter or None, letter == plain_text(row.answer), None, bool(letter))
        # Where options are drawn in the image, a letter is all that is known of them.
        texts: dict[str | None, str] = {each: plain_text(text) or each for each, text in row.choices.items()}
        content = (word or None) if self.worded else texts.get(letter)
        both = self.worded and letter in texts and word in texts.values()
        right = row.letter is not None and content == texts[row.letter]
        return Said(content, right, texts[letter] == word if both else None,
                    letter in texts or (self.worded and word in self.words))  # fmt: skip


def with_content(rows: Sequence[Row], results: Sequence[Result]) -> list[Result]:
    """The results of all rows, in their order, with the fields on content filled in."""
    reader = ContentReader.of(rows, [result.word for result in results])
    filled = []
    for i, result in enumerate(results):
        said = reader.read(i, result.word, result.parsed)
        filled.append(dataclasses.replace(result, content=said.content, content_correct=said.right,
                                          follows=said.follows, readable=said.readable))  # fmt: skip
    return filled
