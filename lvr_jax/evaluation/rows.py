"""A benchmark question as published, before prompt template and image decoding.

A `Row` is all text and small; a whole benchmark of them fits in memory, so that ids, gold letters and pairs are known
without decoding a single image. Prompt templates, extraction rules and aggregations all take rows.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from lvr_jax.data.sample import DataError


class BenchmarkError(DataError):
    """A benchmark folder, row or name that is not what its published layout says; always one line."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One question of a benchmark.

    `question` is bare: no options, no instruction. `letter` is the gold letter, or None for an open question, whose
    gold text is `answer`. `options` are the option texts in order; a lettered question without any has them drawn in
    the image (VisualPuzzles). `group` joins rows that are scored or resampled together: the two images of an MMVP
    pair, the four option orders of an HR-Bench question. `texts` holds the row's own strings, exactly as published,
    that the published prompt templates are made of.
    """

    id: str
    question: str
    letter: str | None
    answer: str
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""
    cycle: str = ""
    texts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def choices(self) -> dict[str, str]:
        """Letter -> option text; A to D with empty texts when the options are drawn in the image."""
        if self.letter is not None and not self.options:
            return dict.fromkeys("ABCD", "")
        return dict(zip(string.ascii_uppercase, self.options))


def split_options(text: str, first: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Cuts "question (A) red (B) blue" into ("question", ("red", "blue")); `first` is "(A)" or "(a)".

    Markers are looked for in order, each after the one before, so that a later "(A)" inside an option stays there.
    """
    letters = string.ascii_uppercase if first[1].isupper() else string.ascii_lowercase
    starts: list[tuple[int, int]] = []
    at = 0
    for letter in letters:
        found = text.find(f"({letter})", at)
        if found < 0:
            break
        at = found + 3
        starts.append((found, at))
    if len(starts) < 2:
        raise BenchmarkError(f"{where}: {text!r} lists no options, expected at least {first} and one more")
    ends = [begin for begin, _ in starts[1:]] + [len(text)]
    options = tuple(text[after:end].strip() for (_, after), end in zip(starts, ends))
    return text[:starts[0][0]].strip(), options


def gold_letter(value: object, count: int, where: str) -> str:
    """The letter in "B", "(B)" or "(b)", which must be one of the first `count` letters."""
    match = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?\.?", value.strip()) if isinstance(value, str) else None
    letter = match[1].upper() if match else ""
    allowed = string.ascii_uppercase[:count]
    if not letter or letter not in allowed:
        raise BenchmarkError(f"{where}: answer is {value!r}, expected one of {', '.join(allowed)}")
    return letter


def field(record: Mapping, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`record[name]`, which must be there and of this kind."""
    if name not in record:
        raise BenchmarkError(f"{where}: no field {name!r}, found {', '.join(map(str, record)) or 'none'}")
    if not isinstance(record[name], kind) or (isinstance(record[name], bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise BenchmarkError(f"{where}: {name} is {record[name]!r}, expected {expected}")
    return record[name]


def texts(record: Mapping, name: str, where: str) -> tuple[str, ...]:
    """`record[name]`, which must be a list of texts."""
    found = field(record, name, list, where)
    if not all(isinstance(each, str) for each in found):
        raise BenchmarkError(f"{where}: {name} is {found!r}, expected a list of texts")
    return tuple(found)


def check_unique(ids: Iterable[str], where: str) -> None:
    """Raises BenchmarkError that names the first id that occurs twice."""
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise BenchmarkError(f"{where}: id {each!r} occurs twice, expected every id once")
        seen.add(each)


def check_counts(found: Mapping[str, int], published: Mapping[str, int], where: str) -> None:
    """Every category must have exactly the published number of questions."""
    for category, expected in published.items():
        if found.get(category, 0) != expected:
            raise BenchmarkError(f"{where}: {category} has {found.get(category, 0)} questions, expected {expected}"
                                 " (any_count=True accepts a subset)")
