"""Finds every record of a JSON or JSON-lines file, so that one is read without the others.

A training file has up to 440,000 records and 350 MB. It is scanned once, to two offsets a record; a record is decoded
when it is asked for. Local files are memory-mapped (workers share the pages), remote ones are read once a process.
"""

from __future__ import annotations

import json
import mmap
import os
import re

import numpy as np
from etils import epath

from lvr_jax.data.sample import DataError, SampleError
from lvr_jax.files.json_io import JsonError, parse

_NO_SPACE = re.compile(r"[^ \t\r\n]|\Z")
_SHOWN = 120            # characters of a bad value that an error line shows


class RecordError(SampleError):
    """One damaged record: which file, which record (from 0), which field, its value, what was expected. Pickles."""

    def __init__(self, file: str, index: int, field: str, value: object, problem: str):
        super().__init__(file, index, field, value, problem)
        self.file, self.index, self.field, self.value, self.problem = file, index, field, value, problem

    def __str__(self) -> str:
        value = repr(self.value)
        value = value if len(value) <= _SHOWN else value[:_SHOWN - 3] + "..."
        return f"{self.file}: record {self.index}: {self.field} = {value}: {self.problem}"


class RecordFile:
    """Random access to the records of one file: a JSON list (first character "[") or one JSON value a line.

    A damaged line harms only its own record, at `read`. A JSON list has no lines to fall back on: one that is cut off
    or damaged is refused as a whole, as is a file without records (DataError naming the file).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._data: bytes | mmap.mmap | None = None
        data = self._open()
        head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
        if head.startswith(b"["):
            spans = _list_spans(str(data, "latin-1"), self.path)
        elif self.path.endswith(".json") and head:
            raise DataError(f"{self.path}: starts with {head[:20]!r}, expected a JSON list of records "
                            "(name it .jsonl if it holds one record a line)")
        else:
            spans = _line_spans(data)
        if not len(spans):
            raise DataError(f"{self.path}: holds no records")
        self._spans = spans                                     # [N, 2] int64: first byte, end

    def __len__(self) -> int:
        return len(self._spans)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_data": None}                 # a map of a file cannot be pickled; offsets can

    def read(self, index: int) -> dict:
        """Record `index` as decoded JSON; RecordError unless it is a JSON object."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} records, asked for {index}")
        start, end = self._spans[index].tolist()
        raw = self._open()[start:end]
        try:
            record = parse(raw, "line")
        except JsonError as error:
            raise RecordError(self.path, index, "line", raw, f"{error}, expected one JSON object") from error
        if not isinstance(record, dict):
            raise RecordError(self.path, index, "record", record, "expected a JSON object")
        return record

    def _open(self) -> bytes | mmap.mmap:
        if self._data is None:
            try:
                self._data = _contents(self.path)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror or error}), expected a file of records"
                                ) from error
        return self._data


def is_remote(path: str) -> bool:
    """Whether a path names a store such as gs://."""
    return "://" in path


def _contents(path: str) -> bytes | mmap.mmap:
    if is_remote(path):
        return epath.Path(path).read_bytes()
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:                 # an empty file cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _line_spans(data: bytes | mmap.mmap) -> np.ndarray:
    ends = [match.start() for match in re.finditer(b"\n", data)] + [len(data)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    if data[:3] == b"\xef\xbb\xbf":
        starts[0] = 3
    spans = [(start, end) for start, end in zip(starts, ends) if data[start:end].strip()]
    return np.array(spans, np.int64).reshape(-1, 2)


def _past_space(text: str, start: int) -> int:
    found = _NO_SPACE.search(text, start)
    return len(text) if found is None else found.start()


def _list_spans(text: str, path: str) -> np.ndarray:
    """Spans of the members of a JSON list. `text` is the file as latin-1: one character a byte, so that offsets in it
    are offsets in the file, and UTF-8 inside strings, though garbled, never looks like a quote or a backslash."""
    decoder = json.JSONDecoder()
    spans: list[tuple[int, int]] = []
    position = _past_space(text, text.index("[") + 1)
    if text[position:position + 1] == "]":
        return np.zeros((0, 2), np.int64)
    while True:
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: record {len(spans)}, from byte {position}: {getattr(error, 'msg', error)}; "
                            "the list is cut off or damaged there") from error
        spans.append((position, end))
        end = _past_space(text, end)
        mark = text[end:end + 1]
        if mark == "]":
            return np.array(spans, np.int64)
        if mark != ",":
            raise DataError(f"{path}: after record {len(spans) - 1}, byte {end}: {mark or 'end of file'!r}, "
                            "expected ',' or ']'; the list is cut off or damaged there")
        position = _past_space(text, end + 1)
