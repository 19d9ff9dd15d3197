"""Coordinates the processes of a run: barriers that name who is missing, comparisons, and a common end.

Everything goes through the key-value store of JAX's coordination service, not through device collectives: hosts that
work on items of their own run no program together, and a barrier must be able to say whom it waits for. `Hosts()` is a
run of one process, where all of this is nothing; `Hosts.here("prism")` are the processes of jax.distributed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from etils import epath

PATIENCE = "LVR_JAX_PATIENCE"       # seconds without any progress of a process after which others give it up
_ROOT = "lvr_jax/hosts"
_TURNS = itertools.count()          # every process meets the others in the same order, which names the meetings


class HostsError(ValueError):
    """Raised where processes disagree on what they run, or do not see the same files."""


class MissingHost(RuntimeError):
    """Raised where a process did not reach a barrier in time; the message names it."""


class Stopped(Exception):
    """A signal asked the run to end; what was finished is kept."""


class StopSignal:
    """Remembers SIGTERM or Ctrl-C, so that a run stops between batches and not inside a library call.

    A second signal ends the process at once.
    """

    def __init__(self):
        self.number: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, frame) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def check(self) -> None:
        if self.number is not None:
            name = signal.Signals(self.number).name
            raise Stopped(f"stopped by {name}; the same command goes on from here")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process, `index` of `count`; client: of the coordination service, None for one process.

    patience: a barrier gives up when none of those it waits for has finished anything for so many seconds
    stop: asked at every barrier and after every batch; raises Stopped there
    """

    index: int = 0
    count: int = 1
    client: Any = None
    program: str = ""
    patience: float = 1800.0
    stop: StopSignal | None = None
    _ending: threading.Lock = dataclasses.field(default_factory=threading.Lock, compare=False, repr=False)
    _done: threading.Event = dataclasses.field(default_factory=threading.Event, compare=False, repr=False)

    @classmethod
    def here(cls, program: str = "", *, signals: bool = True) -> Hosts:
        """The processes that jax.distributed joined; a failure that one of them tells of ends this one (`leave`).

        signals: heed them from here on (JAX's own handler would only take notice of them); not for training, whose
        loop saves a step that all hosts agree on first.
        """
        stop = StopSignal() if signals else None
        if jax.process_count() == 1:
            return cls(program=program, stop=stop)
        from jax._src.distributed import global_state  # no public door to the key-value store (jax 0.10.2)

        patience = float(os.environ.get(PATIENCE, cls.patience))
        hosts = cls(jax.process_index(), jax.process_count(), global_state.client, program, patience, stop)
        threading.Thread(target=hosts._watch, name="hosts", daemon=True).start()
        return hosts

    @property
    def first(self) -> bool:
        return self.index == 0

    # Meeting ---------------------------------------------------------------------------------------------------------

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """The JSON-able values of all processes, in their order, once all have come. Raises MissingHost."""
        self._heed()
        if self.count == 1:
            return [value]
        place = f"{_ROOT}/{next(_TURNS)}-{name}"
        self.client.key_value_set(f"{place}/{self.index}", json.dumps(value))
        state, since, pause = None, time.monotonic(), 0.01
        while True:
            self._heed()
            found = {int(key.rsplit("/", 1)[1]): text for key, text in self.client.key_value_dir_get(f"{place}/")}
            if len(found) == self.count:
                return [json.loads(found[index]) for index in range(self.count)]
            now = (len(found), dict(self.client.key_value_dir_get(f"{_ROOT}/progress/")))
            if now != state:
                state, since = now, time.monotonic()
            elif time.monotonic() - since > self.patience:
                missing = [str(index) for index in range(self.count) if index not in found]
                raise MissingHost(
                    f"{name}: process {', '.join(missing)} of {self.count} did not come within {self.patience:.0f} s;"
                    " what is finished is kept, the same command goes on from here"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def wait(self, name: str) -> None:
        """A barrier."""
        self.gather(name)

    def broadcast(self, name: str, make: Callable[[], Any]) -> Any:
        """What the first process makes, to all; JSON-able."""
        return self.gather(name, make() if self.first else None)[0]

    def progress(self, done: int) -> None:
        """Reports progress of this process, so that others extend their waiting for it."""
        self._heed()
        if self.count > 1:
            self.client.key_value_set(f"{_ROOT}/progress/{self.index}", str(done), allow_overwrite=True)

    def _heed(self) -> None:
        if self.stop is not None:
            self.stop.check()

    # Comparing -------------------------------------------------------------------------------------------------------

    def same(self, what: Mapping[str, Any]) -> None:
        """Raises HostsError, in every process, unless all of them say the same; names the first difference."""
        if self.count == 1:
            return
        said = self.gather("comparison", _flat(what))
        for other, theirs in enumerate(said):
            for key in {**said[0], **theirs}:
                if said[0].get(key) != theirs.get(key):
                    raise HostsError(f"the hosts disagree on {key}: process 0 has {said[0].get(key)}, process {other}"
                                     f" has {theirs.get(key)}; expected the same on all of them")

    def share(self, folder) -> None:
        """Raises HostsError unless every process sees what the first one writes into the folder."""
        if self.count == 1:
            return
        folder = epath.Path(folder)

        def begin() -> str:
            folder.mkdir(parents=True, exist_ok=True)
            token = f".hosts-{uuid.uuid4().hex}"
            (folder / token).write_text("")
            return token

        token = folder / self.broadcast("shared folder", begin)
        seen = self.gather("shared folder", token.exists())
        if self.first:
            token.unlink()
        blind = [str(index) for index, sees in enumerate(seen) if not sees]
        if blind:
            raise HostsError(f"{folder}: process {', '.join(blind)} of {self.count} does not see what process 0 writes"
                             " there, expected gs:// or a folder that all hosts share")

    # Ending ----------------------------------------------------------------------------------------------------------

    def leave(self, status: int, line: str) -> int:
        """Ends this process with a line and a status; if it is not the only one, all others with the same.

        Of several it does not return: they may be inside a device collective that nothing interrupts, and JAX's own
        shutdown would wait for them. The first process, which holds the store, stays until the others have read it.
        """
        if self.count == 1:
            print(line, file=sys.stderr)
            return status
        self._ending.acquire()
        told = json.dumps({"process": self.index, "status": status, "line": line.removeprefix(f"{self.program}: ")})
        try:
            self.client.key_value_set(f"{_ROOT}/failed", told)
        except jax.errors.JaxRuntimeError:      # another process was quicker, or the store is gone with the first
            pass
        self._exit(status, line)

    def finish(self) -> None:
        """The barrier before a run of several processes ends well."""
        self.wait("end")
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            try:
                told = json.loads(self.client.key_value_try_get(f"{_ROOT}/failed"))
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" in str(error):
                    continue
                told = {"process": 0, "status": 1, "line": "is gone, and with it the coordination service"}
            if self._ending.acquire(blocking=False) and not self._done.is_set():
                self._exit(told["status"], f"{self.program}: process {told['process']}: {told['line']}")
            return

    def _exit(self, status: int, line: str) -> NoReturn:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        try:
            self.client.key_value_set(f"{_ROOT}/left/{self.index}", "")
            deadline = time.monotonic() + 20
            while self.first and time.monotonic() < deadline:
                if len(self.client.key_value_dir_get(f"{_ROOT}/left/")) == self.count:
                    break
                time.sleep(0.1)
        finally:
            os._exit(status)


ALONE = Hosts()


def _flat(what: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested fields by dotted names, long ones cut and told apart by a digest: all hosts read those of all."""
    found: dict[str, str] = {}
    for key, value in what.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        else:
            text = json.dumps(value)
            found[f"{above}{key}"] = text if len(text) <= 120 else f"{text[:60]}... ({digest(value)})"
    return found


def digest(value: Any) -> str:
    """A short name of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code_version() -> str:
    """A digest of this package's source, and JAX's version."""
    digest = hashlib.sha256()
    place = Path(__file__).resolve().parent.parent
    for path in sorted(place.rglob("*.py")):
        digest.update(f"{path.relative_to(place).as_posix()}\n".encode() + path.read_bytes())
    return f"{digest.hexdigest()[:16]}, jax {jax.__version__}"
