"""Ends a process whose run hangs, after writing the stacks of all threads, so that it can be restarted.

A host that vanished, a collective that not all hosts joined or a store that never answers would otherwise hold a slice
until somebody looks.
"""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import jax
from etils import epath

FIRST = 3       # times longer for the first step: programs are compiled and all hosts have to come


class Watchdog:
    """`beat(step)` says that a step has happened; `minutes` without one end the process with status 1. 0: never.

    The stacks go to WORKDIR/stacks and to stderr. end: another way to end.
    """

    def __init__(self, workdir: str | os.PathLike, minutes: float, end: Callable[[int], None] = os._exit):
        self.folder, self.seconds, self._end = epath.Path(workdir) / "stacks", 60.0 * minutes, end
        self._step: int | None = None
        self._since, self._allowed = time.monotonic(), FIRST * self.seconds
        self._closed = threading.Event()
        if minutes:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        self._step, self._since, self._allowed = step, time.monotonic(), self.seconds

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self.seconds / 4, 10.0)):
            waited = time.monotonic() - self._since
            if waited > self._allowed:
                self._report(waited)
                self._end(1)
                return

    def _report(self, waited: float) -> None:
        after = "before the first step" if self._step is None else f"after step {self._step}"
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        path = self.folder / f"process_{jax.process_index()}_{time.strftime('%Y%m%d_%H%M%S')}.txt"
        sys.stderr.write(stacks.decode(errors="replace"))
        # The store may be what hangs.
        writing = threading.Thread(target=self._write, args=(path, stacks), daemon=True)
        writing.start()
        writing.join(30)
        where = "above" if writing.is_alive() or not self._written else f"in {path}"
        print(f"train: no step for {waited / 60:.1f} minutes {after}; the stacks of all threads are {where}",
              file=sys.stderr, flush=True)  # fmt: skip

    _written = False

    def _write(self, path: epath.Path, stacks: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stacks)
            self._written = True
        except Exception as error:      # a place that cannot be written to: stderr has them
            print(f"train: {path} could not be written: {error}", file=sys.stderr)
