"""Files of a sweep: one a batch and phase, each written completely or not at all."""

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lvr_jax.checkpoints.errors import disk_full_is_one_line
from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.whole_file import TEMPORARY, write_whole
from lvr_jax.latents.conditions import Condition
from lvr_jax.multihost.cell import Cell
from lvr_jax.multihost.hosts import digest

MANIFEST = "sweep.json"
OWNER = "__sweep__"         # in every file of arrays: which sweep's, which phase, which batch


class SweepError(ValueError):
    """A folder that holds another sweep, or a file of it that cannot be read."""


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """A finished sweep: items in the order of the prompts, conditions with the clean pass first.

    arrays: what was kept, each [C, I, ...]; missing [C, I]: the condition's source had nothing for the item
    donor: [C, I] the place among `items` of whose latents were fed, -1 for nobody's
    records: the conditions as the sweep was given them: kind, strength, evidence, everything
    """

    conditions: list[str]
    items: list[str]
    arrays: dict[str, np.ndarray]
    missing: np.ndarray
    donor: np.ndarray
    records: list[Condition]

    def of(self, condition: str) -> dict[str, np.ndarray]:
        """One condition's arrays, [I, ...]."""
        if condition not in self.conditions:
            raise SweepError(f"condition {condition!r} is not in the sweep, expected one of {self.conditions}")
        return {key: value[self.conditions.index(condition)] for key, value in self.arrays.items()}


class SweepFiles:
    """The folder of one sweep."""

    def __init__(self, folder):
        self.folder = epath.Path(folder)

    def open(self, manifest: Mapping[str, Any], cell: Cell = Cell()) -> None:  # noqa: B008
        """Begins the sweep, or checks that the folder holds this one; what an interruption left half is removed.

        Every process calls it: the first one writes, and all compare what they were asked. An idle cell runs no
        batch, so that its own type, and the weights in it, need not be those of the run.
        """
        cell.hosts.same(manifest)
        if cell.idle:
            held = self.manifest()
            self._compare(held, {**manifest, **{key: held[key] for key in ("weights", "dtype") if key in held}})
        elif cell.hosts.first:
            self._begin(manifest)
        cell.hosts.wait(f"{self.folder.name} is open")

    def _begin(self, manifest: Mapping[str, Any]) -> None:
        path = self.folder / MANIFEST
        if path.exists():
            self._compare(self.manifest(), manifest)
        elif arrays := sorted(each.name for each in self.folder.glob("*.npz")):
            raise SweepError(f"{self.folder} holds {len(arrays)} files of arrays ({arrays[0]}) without their"
                             f" {MANIFEST}, expected both or neither; use another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{TEMPORARY}"):
            left.unlink()
        if not path.exists():
            self._put(path, json.dumps(manifest, indent=1).encode())

    def _compare(self, held: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        manifest = json.loads(json.dumps(manifest))
        for key in {**held, **manifest}:
            if held.get(key) != manifest.get(key):
                found, wanted = (str(m.get(key))[:200] for m in (held, manifest))
                raise SweepError(
                    f"{self.folder} holds another sweep: {key} is {found}, expected {wanted}; use another folder"
                )

    def manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.exists():
            raise SweepError(f"{self.folder}: no {MANIFEST}; expected the folder of a sweep")
        try:
            return read_object(path)
        except JsonError as error:
            raise SweepError(f"{error}; expected what the sweep wrote of itself, use another folder") from error

    def path(self, phase: str, number: int) -> epath.Path:
        return self.folder / f"{phase}-{number:05d}.npz"

    def missing(self, phases: Sequence[str], count: int, cell: Cell = Cell()) -> dict[str, list[int]]:  # noqa: B008
        """By phase, the batches of `count` that are this cell's and not there: a batch's phases are one cell's, which
        holds its prefix. Every process calls it."""

        def absent() -> list[list[int]]:
            there = {path.name for path in self.folder.glob("*.npz")}
            return [[n for n in range(count) if self.path(phase, n).name not in there] for phase in phases]

        found = cell.hosts.broadcast(f"missing of {self.folder.name}", absent)
        if cell.idle and any(found):
            phase, numbers = next((phase, numbers) for phase, numbers in zip(phases, found) if numbers)
            raise SweepError(f"{self.path(phase, numbers[0])}: is missing, and {sum(map(len, found)) - 1} more of"
                             f" {count * len(phases)} files; expected a finished audit (run it without --report_only)")
        mine = set(sorted({n for phase in found for n in phase})[cell.number :: cell.count])
        return {phase: [n for n in numbers if n in mine] for phase, numbers in zip(phases, found)}

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self.manifest())

    def _owner(self, phase: str, number: int) -> np.ndarray:
        """The header of a file: which sweep it belongs to, and which part of it."""
        return np.array(f"{self._digest} {phase} {number}")

    def write(self, phase: str, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Atomic; the bytes depend on the arrays and the manifest alone (a zip archive of `savez` has no date)."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {**dict(sorted(arrays.items())), OWNER: self._owner(phase, number)}
        np.savez(buffer, **named)
        self._put(self.path(phase, number), buffer.getvalue())

    def load(self, phase: str, number: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        path = self.path(phase, number)
        if not path.exists():
            raise SweepError(f"{path}: is missing, the sweep is not finished; run it again to go on")
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                owner = str(file[OWNER]) if OWNER in file.files else "no sweep that it names"
                kept = [key for key in file.files if key != OWNER] if keys is None else keys
                found = {key: file[key] for key in kept}
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise SweepError(f"{path}: cannot be read ({error}); remove it and run the sweep again") from error
        if owner != str(self._owner(phase, number)):
            raise SweepError(f"{path}: is of another sweep ({owner}), expected one of {self.folder / MANIFEST}"
                             f" ({self._owner(phase, number)}); remove it and run the sweep again")
        return found

    def refuse_other_arrays(self) -> None:
        """Raises SweepError unless the manifest is that of the first file of arrays: nothing in it has been changed."""
        for path in sorted(self.folder.glob("*.npz"))[:1]:
            phase, _, number = path.stem.rpartition("-")
            self.load(phase, int(number) if number.isdecimal() else -1, keys=())

    def _put(self, path: epath.Path, content: bytes) -> None:
        with disk_full_is_one_line(self.folder):
            write_whole(path, content)


def read(folder) -> SweepResults:
    """A finished sweep. Raises SweepError if it is not there, not finished or damaged."""
    files = SweepFiles(folder)
    manifest = files.manifest()
    files.refuse_other_arrays()
    batches = range(len(manifest["items"]))
    found: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    for phase, conditions in manifest["conditions"].items():
        names += [c["name"] for c in conditions]
        parts = [files.load(phase, number) for number in batches]
        for key in parts[0]:
            if not key.startswith("clean_"):
                found.setdefault(key, []).append(np.concatenate([part[key] for part in parts], axis=1))
    order = [names.index(name) for name in manifest["order"]]
    arrays = {key: np.concatenate(values)[order] for key, values in found.items()}
    missing, donor = arrays.pop("missing"), arrays.pop("donor")
    records = {c["name"]: Condition.from_record(c) for phase in manifest["conditions"].values() for c in phase}
    items = [i for batch in manifest["items"] for i in batch]
    return SweepResults(manifest["order"], items, arrays, missing, donor, [records[name] for name in manifest["order"]])
