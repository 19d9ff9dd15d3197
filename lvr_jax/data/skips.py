"""Keeps which examples were left out of a run and why, and says when they are too many."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

from lvr_jax.data.encoding import Skipped
from lvr_jax.data.sample import DataError
from lvr_jax.files.json_io import JsonError, parse_object


class TooManySkipsError(DataError):
    """More of the data is damaged than the run was told to put up with."""


class SkipLog:
    """Counts what is done with, emitted or skipped, and lists every skip.

    The list is a JSON-lines file, one object a skip: position (in the run's order), source, index, file, error and
    reason. A position is listed once however often a resumed run comes by, so the file stays true after a restart.
    Local files are appended to; a remote store cannot append, there the whole list is written again when it grew.

    The check waits for `patience` examples, so that a bad first one does not stop a run, and is made once more at the
    end of the data. path None lists nothing, but counts.
    """

    def __init__(self, path: str | os.PathLike | None, max_share: float, patience: int = 200):
        if not 0 <= max_share <= 1:
            raise DataError(f"max_skip_share {max_share}: expected a share, 0 to 1")
        self.path = None if path is None else os.fspath(path)
        self.max_share, self.patience = max_share, patience
        self.seen = 0
        self.counts: dict[str, int] = {}
        self._listed: dict[int, str] | None = None          # position -> line; read when first needed
        self._unwritten: list[str] = []
        self._last = ""

    @property
    def skipped(self) -> int:
        return sum(self.counts.values())

    def state(self) -> dict:
        return {"seen": self.seen, "skipped": dict(sorted(self.counts.items()))}

    def restore(self, state: Mapping) -> None:
        self.seen, self.counts = int(state["seen"]), {k: int(v) for k, v in state["skipped"].items()}

    def add(self, position: int, skip: Skipped) -> None:
        """Counts and lists one skip; the line reaches the file at `flush`."""
        self.seen += 1
        self.counts[skip.source] = self.counts.get(skip.source, 0) + 1
        self._last = f"{skip.source}[{skip.index}]: {skip.reason}"
        if self.path is None:
            return
        if self._listed is None:
            self._listed = {_position(line, -n): line for n, line in enumerate(_lines(self.path), 1)}
        if position not in self._listed:
            line = json.dumps({"position": position, **dataclasses.asdict(skip)}, ensure_ascii=False)
            self._listed[position] = line
            self._unwritten.append(line)

    def flush(self) -> None:
        from etils import epath

        if not self._unwritten:
            return
        new, self._unwritten = "".join(f"{line}\n" for line in self._unwritten), []
        epath.Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        if "://" in self.path:
            epath.Path(self.path).write_text("".join(f"{line}\n" for line in self._listed.values()))
        else:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(new)

    def check(self, *, at_end: bool = False) -> None:
        """TooManySkipsError if more than `max_share` of what was seen had to be skipped."""
        if self.skipped > self.max_share * self.seen and (at_end or self.seen >= self.patience):
            self.flush()
            listed = f"; all are listed in {self.path}" if self.path else ""
            raise TooManySkipsError(
                f"skipped {self.skipped} of {self.seen} examples ({self.skipped / self.seen:.1%}), max_skip_share is "
                f"{self.max_share:.1%}; last: {self._last}{listed}"
            )


def _lines(path: str) -> list[str]:
    """Complete lines of an earlier run's list; one that a killed run left half-written is cut off."""
    from etils import epath

    file = epath.Path(path)
    if not file.exists():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        file.write_bytes(whole)
    return whole.decode("utf-8", "replace").split("\n")[:-1]


def _position(line: str, otherwise: int) -> int:
    """Where the skip that a line lists stands; a damaged line stays in the list, under another number."""
    try:
        found = parse_object(line, "line").get("position")
    except JsonError:
        return otherwise
    return found if isinstance(found, int) else otherwise
