"""Finished batches of an unfinished evaluation: one file each in OUTPUT.parts, there completely or not at all.

Each holds the header and its items, so that batches of any number of hosts, and of runs with other rows a batch, can
lie side by side. On object storage (gs://) a file is one object, written at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from lvr_jax.evaluation.results import Header, Result, read_results, write_results
from lvr_jax.evaluation.rows import BenchmarkError, Row

SUFFIX = ".parts"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is there of one evaluation: its output, or the batches that will make it.

    asked: digests of what each item is asked, by id; follows: whether a result's verdict is that of its reply
    """

    output: epath.Path
    header: Header
    asked: Mapping[str, str]
    follows: Callable[[Row, Result], bool] = lambda row, result: True

    @property
    def folder(self) -> epath.Path:
        return self.output.parent / (self.output.name + SUFFIX)

    def done(self, rows: Sequence[Row]) -> dict[str, Result]:
        """What is there already, by item. Results of other settings, of other questions, or of more items are refused:
        none is ever lost. Raises BenchmarkError.
        """
        found: dict[str, Result] = {}
        asked = {row.id: row for row in rows}
        parts = sorted(self.folder.glob("*.jsonl")) if self.folder.exists() else []
        for path in [*([self.output] if self.output.exists() else []), *parts]:
            held = read_results(path)
            if held.header != self.header:
                ours, theirs = (dataclasses.asdict(h) for h in (self.header, held.header))
                raise BenchmarkError(f"{path}: holds another evaluation ({_difference(theirs, ours)}), expected another"
                                     " --output")
            if more := [item.id for item in held.items if item.id not in asked]:
                raise BenchmarkError(f"{path}: holds {len(more)} items that this run does not ask for"
                                     f" ({', '.join(more[:3])}), expected another --output (or the larger --limit)")
            for item in held.items:
                if wrong := self._contradiction(asked[item.id], item):
                    raise BenchmarkError(f"{path}: item {item.id} {wrong}, expected another --output")
            found |= {item.id: item for item in held.items}
        return found

    def _contradiction(self, row: Row, item: Result) -> str:
        """What of a result is not the benchmark's own, or does not follow from its reply; nothing if all is well."""
        if item.asked != self.asked[row.id]:
            return "is of another question, options, answer or picture than the benchmark has now"
        for field in ("letter", "answer", "category", "group", "cycle"):
            if getattr(item, field) != getattr(row, field):
                return f"has {field} {getattr(item, field)!r}, the benchmark {getattr(row, field)!r}"
        if not self.follows(row, item):
            return f"is marked {'right' if item.correct else 'wrong'} as {item.parsed!r}, which its reply does not give"
        return ""

    def write(self, first: int, results: Iterable[Result]) -> None:
        """One batch; `first` is the smallest place of its items in the benchmark: no other batch of a run has it."""
        path = self.folder / f"{first:06d}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_results(path, self.header, tuple(results))
        except OSError as error:                # a full disk does not say whose
            raise OSError(f"{path}: {error.strerror or error}; what was finished is kept") from error

    def join(self, rows: Sequence[Row], finish: Callable[[list[Result]], Sequence[Result]] = list) -> None:
        """Writes the output in the benchmark's order and removes the parts.

        finish: adds what only all items together tell
        """
        found = self.done(rows)
        missing = [row.id for row in rows if row.id not in found]
        if missing:
            raise BenchmarkError(f"{self.output}: {len(missing)} items are missing ({', '.join(missing[:3])}), expected"
                                 " every process to write its batches to the same folder")
        write_results(self.output, self.header, finish([found[row.id] for row in rows]))
        if self.folder.exists():
            self.folder.rmtree()


def _difference(theirs: Mapping, ours: Mapping) -> str:
    """The first field in which two headers differ."""
    for key in {**theirs, **ours}:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and a != b:
            return f"{key}.{_difference(a, b)}"
        if a != b:
            return f"{key} {a!r}, now {b!r}"
    return "none"


def place_of(output: str | os.PathLike) -> epath.Path:
    """The output's path, local or gs://; its folder is made."""
    path = epath.Path(os.fspath(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
