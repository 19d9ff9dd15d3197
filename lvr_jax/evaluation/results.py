"""A file of results: JSONL, one header line, then one line an item.

    {"header": {"benchmark": "vstar", "family": "vstar", "checkpoint": "...", "protocol": {...}, ...}}
    {"id": "0", "correct": true, "category": "direct_attributes", "prompt": "...", "reply": "...", "parsed": "A", ...}

The header carries the whole protocol, so that a number never travels without it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

from etils import epath

from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.rows import BenchmarkError, check_unique
from lvr_jax.evaluation.scoring import Mark
from lvr_jax.files.json_io import JsonError, check_kinds, parse
from lvr_jax.files.whole_file import write_whole


@dataclasses.dataclass(frozen=True)
class Header:
    """What all items of a file share. `details` is free: seeds, device, versions."""

    benchmark: str
    family: str
    checkpoint: str
    protocol: Protocol
    condition: str = "clean"
    details: dict = dataclasses.field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps({"header": dataclasses.asdict(self)}, ensure_ascii=False) + "\n"


@dataclasses.dataclass(frozen=True)
class Result:
    """One item's outcome. `letter_logits` are those of the option letters at the answer position, in order A, B, ...;
    `latents_fed` counts injected latents, `triggered` says whether the model entered latent mode at all. word: before
    the marked answer; content, content_correct, follows, readable: see content.Said. asked: evaluation.asked."""

    id: str
    correct: bool
    prompt: str = ""
    reply: str = ""
    parsed: str | None = None
    letter: str | None = None
    answer: str = ""
    category: str = ""
    group: str = ""
    cycle: str = ""
    letter_logits: tuple[float, ...] = ()
    latents_fed: int = 0
    triggered: bool = False
    word: str = ""
    content: str | None = None
    content_correct: bool = False
    follows: bool | None = None
    readable: bool = False
    asked: str = ""

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    def mark(self) -> Mark:
        return Mark(self.id, self.correct, self.category, self.group, self.cycle)


@dataclasses.dataclass(frozen=True)
class Results:
    """A file of results: its header and one result an item."""

    path: str
    header: Header
    items: tuple[Result, ...]

    def marks(self) -> list[Mark]:
        """Of the letter, or of whatever else the protocol's rule reads."""
        return [item.mark() for item in self.items]

    def content_marks(self) -> list[Mark]:
        """Of the answer's content."""
        return [dataclasses.replace(item.mark(), correct=item.content_correct) for item in self.items]


def write_results(path: str | os.PathLike, header: Header, items: Sequence[Result]) -> None:
    """The whole file at once: by way of a temporary name, or as one object (gs://)."""
    check_unique((item.id for item in items), os.fspath(path))
    text = header.to_line() + "".join(item.to_line() for item in items)
    write_whole(path, text)


def read_results(path: str | os.PathLike) -> Results:
    """Header and items; a line that was cut off is an error."""
    file = epath.Path(os.fspath(path))
    if not file.exists() or file.is_dir():
        what = "a folder" if file.exists() else "no such file"
        raise BenchmarkError(f"{file}: {what}, expected results of an evaluation (JSONL)")
    lines = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append((f"{path}:{number}", parse(line, f"{path}:{number}")))
        except JsonError as error:
            raise BenchmarkError(f"{error}, expected one result a line") from None
    if not records or not isinstance(records[0][1], dict) or "header" not in records[0][1]:
        raise BenchmarkError(f"{path}: first line is no header, expected the one that an evaluation writes")
    items = tuple(_result(record, where) for where, record in records[1:])
    check_unique((item.id for item in items), str(path))
    return Results(str(path), _header(records[0][1]["header"], str(path)), items)


def _known(record: object, cls: type, where: str) -> dict:
    names = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(record, dict) or set(record) - set(names):
        odd = ", ".join(sorted(set(record) - set(names))) if isinstance(record, dict) else type(record).__name__
        raise BenchmarkError(f"{where}: unexpected {odd}, expected fields among {', '.join(names)}")
    missing = [name for name, field in names.items()
               if name not in record and field.default is field.default_factory is dataclasses.MISSING]
    if missing:
        raise BenchmarkError(f"{where}: missing {', '.join(missing)}")
    try:
        check_kinds(record, cls, where)
    except JsonError as error:
        raise BenchmarkError(str(error)) from None
    return record


def _header(record: object, where: str) -> Header:
    fields = _known(record, Header, f"{where}: header")
    return Header(**{**fields, "protocol": Protocol.from_json(fields["protocol"])})


def _result(record: object, where: str) -> Result:
    fields = _known(record, Result, where)
    return Result(**{**fields, "letter_logits": tuple(fields.get("letter_logits", ()))})
