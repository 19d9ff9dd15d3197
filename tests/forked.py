"""Programs that begin where their libraries have been imported, which takes each of them two seconds.

A process of multiprocessing's fork server imports what programs import and touches no device (`forked_imports.py`).
A program becomes a copy of it, with arguments, environment, folder, streams, signals and exit status of its own. How
Python itself starts a program is not seen this way: tests of installations and of signals at an early moment use
`subprocess`. The workers of a study that begins like this are copies of it in turn.
"""

import atexit
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO
from unittest import mock

from study.worker import Worker, forget_flags, run_here, serve

TESTS = Path(__file__).resolve().parent
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["forked_imports"])


class Process:
    """A program on its way, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str] = os.environ,
                 folder: str | Path = ".", streams: Sequence[str | Path] = ()):  # fmt: skip
        """command: a file of Python and its arguments, or "-c", a program and its arguments; streams: files that get
        standard output and error, in place of those that `communicate` reads."""
        if command[0] == "-c":
            self._program = tempfile.NamedTemporaryFile("w", suffix=".py")
            self._program.write(command[1])
            self._program.flush()
            command = [self._program.name, *command[2:]]
        self._files = [] if streams else [tempfile.NamedTemporaryFile() for _ in range(2)]
        streams = [str(path) for path in streams] or [file.name for file in self._files]
        given = [*map(str, command)], dict(environment), str(Path(folder).absolute()), streams
        _start_server()
        self._process = _fork.Process(target=_become, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its standard output and error, at its end."""
        self.wait(timeout)
        out, err = (Path(file.name).read_text() for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _start_server() -> None:
    places = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(places)}):
        multiprocessing.forkserver.ensure_running()
    atexit.register(_kill_what_is_left)


def _kill_what_is_left() -> None:
    """Of tests that were interrupted: multiprocessing would wait for it."""
    for process in multiprocessing.active_children():
        process.kill()


def _become(command: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> None:
    """Runs the program in this process, which ends as one that Python started for it would."""
    import forked_imports

    for number, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=False)
    os.chdir(folder)
    forked_imports.adopt(environment)
    multiprocessing.set_start_method(None, force=True)
    Worker.start = staticmethod(_Copy)
    status = run_here(command)
    threading._shutdown()
    atexit._run_exitfuncs()
    raise SystemExit(status)


class _Copy:
    """Of this process, which has not started JAX, for a worker of the study; as much of `subprocess.Popen` as `Worker`
    uses."""

    def __init__(self, core: int, folder: Path, environment: Mapping[str, str], log: Path):
        requests, self.stdin = _pipe()
        self.stdout, answers = _pipe()
        given = core, folder, dict(environment), log, requests, answers
        self._process = multiprocessing.get_context("fork").Process(target=_serve, args=given)
        self._process.start()
        requests.close()
        answers.close()
        self.poll, self.terminate = lambda: self._process.exitcode, self._process.terminate

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode


def _pipe() -> tuple[IO[str], IO[str]]:
    """Its end to read from and its end to write to."""
    end, beginning = os.pipe()
    return os.fdopen(end, "r"), os.fdopen(beginning, "w")


def _serve(core: int, folder: Path, environment: dict[str, str], log: Path, requests: IO, answers: IO) -> None:
    """What `python study/worker.py` does, from here on."""
    import forked_imports

    os.setsid()
    os.sched_setaffinity(0, {core})
    with open(log, "ab") as file:
        for number, stream in enumerate((requests, answers, file)):
            os.dup2(stream.fileno(), number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))     # the study's: its lock, the pipes of its other workers
    os.chdir(folder)
    forked_imports.adopt(environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    forget_flags(sys.argv[0])
    serve()
