"""Writes CSV that a spreadsheet opens as text and numbers, never as formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_STARTS = ("=", "+", "-", "@", "\t", "\r")
# Signed numbers as our tables write them, with brackets and units behind, are no formulas.
_NUMBER = re.compile(r"[+-]\d[\d.,e+-]*( ?%)?( \[.*\])?")


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. A text that a spreadsheet would run gets an apostrophe before it, which marks it as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(x) for x in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    runs = isinstance(value, str) and value.startswith(_STARTS) and not _NUMBER.fullmatch(value)
    return f"'{value}" if runs else value
