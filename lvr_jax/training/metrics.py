"""Writes a run's numbers from process 0: JSON lines, true after a restart, and TensorBoard.

A log never ends a run and never holds it up: what cannot be written is said once and tried again at the next flush, and
a remote store is written to by a thread of its own, with the latest of everything. TensorBoard's events are written
locally and copied, so that no library of its own has to know the store.
"""

import json
import os
import tempfile
import threading
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

PATIENCE = 60.0     # seconds that the end of a run waits for the last copy


class Writer:
    """`metrics.jsonl` (one object a step: step, then names) and TensorBoard event files in `workdir`.

    start: the step that the run goes on after. What an earlier process wrote beyond it is cut off: those steps are
    done again. Processes other than the first write nothing.
    """

    def __init__(self, workdir: str | os.PathLike, start: int = 0, tensorboard: bool = True):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self._lines = [line for line in self._read() if json.loads(line)["step"] <= start]
        self._said: set[str] = set()
        self._events = _Events(epath.Path(workdir) / "tensorboard", start) if tensorboard else None
        self._store = _Store(self._write_all) if "://" in os.fspath(workdir) else None
        self._local = None if self._store else _LocalLines(self.path)
        self.flush()

    def _read(self) -> list[str]:
        """Complete lines with a step; one that a killed process left half-written is dropped, as is anything else."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        sound = [line for line in lines if _has_step(line)]
        if len(sound) < len(lines):
            logging.warning("%s: %d lines without a step are dropped", self.path, len(lines) - len(sound))
        return sound

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self.active:
            return
        self._lines.append(json.dumps({"step": step} | {k: float(v) for k, v in values.items()}))
        if self._events:
            self._try("TensorBoard", lambda: self._events.write(step, values))

    def flush(self) -> None:
        if not self.active:
            return
        if self._store:
            self._store.request()
        else:
            self._try("metrics.jsonl", lambda: self._local.write(self._lines))
            self._copy_events()

    def close(self) -> None:
        if not self.active:
            return
        self.flush()
        if self._store and not self._store.close(PATIENCE):
            logging.warning("%s: the last lines could not be written within %.0f s", self.path, PATIENCE)
        if self._events:
            self._try("TensorBoard", self._events.close)

    def _write_all(self) -> None:
        """A remote store cannot append: the lines are written anew."""
        text = "".join(f"{line}\n" for line in list(self._lines))
        self._try("metrics.jsonl", lambda: self.path.write_text(text))
        self._copy_events()

    def _copy_events(self) -> None:
        if self._events:
            self._try("TensorBoard", self._events.copy)

    def _try(self, what: str, act) -> None:
        try:
            act()
        except Exception as error:      # whatever a library of a log raises: the run goes on
            if what not in self._said:
                self._said.add(what)
                logging.warning("%s: %s cannot be written (%s); the run goes on", self.path.parent, what, error)


def _has_step(line: str) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("step"), int)


class _LocalLines:
    """Appends to a file; what a full disk cut off is written again behind the last complete line."""

    def __init__(self, path: epath.Path):
        self.path, self.done, self.size = path, 0, 0

    def write(self, lines: list[str]) -> None:
        with open(self.path, "r+b" if self.done else "wb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            new = "".join(f"{line}\n" for line in lines[self.done :]).encode()
            file.write(new)
        self.done, self.size = len(lines), self.size + len(new)


class _Events:
    """TensorBoard's event files, written to a local folder and copied to where they belong if that is elsewhere."""

    def __init__(self, folder: epath.Path, start: int):
        from tensorboardX import SummaryWriter

        self.remote = folder if "://" in os.fspath(folder) else None
        self._temporary = tempfile.TemporaryDirectory(prefix="lvr_jax_events_") if self.remote else None
        self.local = epath.Path(self._temporary.name) if self._temporary else folder
        self._writer = SummaryWriter(os.fspath(self.local), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def copy(self) -> None:
        self._writer.flush()
        for file in self.local.iterdir() if self.remote else ():
            (self.remote / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()


class _Store:
    """Does something in a thread whenever it was asked for since; a store that hangs holds nobody up."""

    def __init__(self, act):
        self._act, self._asked, self._ended = act, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not (self._ended.is_set() and not self._asked.is_set()):
            self._asked.wait()
            self._asked.clear()
            self._act()

    def request(self) -> None:
        self._asked.set()

    def close(self, patience: float) -> bool:
        """Whether all was written in time."""
        self._ended.set()
        self._asked.set()
        self._thread.join(patience)
        return not self._thread.is_alive()
