"""Runs programs one after another in one process of one core, so that JAX and what it has compiled stay warm.

`Worker` is the study's side of the pipe, `serve` the process's own. A request is a line of JSON, its answer another
one. A program runs as `python PROGRAM ARGUMENTS` would: with flags, signal handlers, arguments, path and streams of its
own. A program that brings its process down takes no other one along, and the process ends with whoever started it.
"""

import dataclasses
import gc
import json
import os
import queue
import re
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class End:
    """Of a program. processor: seconds, the start of a new process included; memory: bytes its process took at most."""

    status: int
    processor: float = 0.0
    memory: int = 0


class Worker:
    """A process that runs one program at a time."""

    def __init__(self, core: int, folder: Path, environment: Mapping[str, str], log: Path):
        """log: gets what is said before the first program has its own."""
        self.core, self.process = core, self.start(core, folder, environment, log)

    @staticmethod
    def start(core: int, folder: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen:
        """The process, which `serve`s. Tests have another way, where this takes too long."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, __file__], cwd=folder, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}) if hasattr(os, "sched_setaffinity") else None,
                start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def run(self, command: Sequence[str], log: Path) -> None:
        """command: a program and its arguments; log: the file that both its streams are appended to."""
        self._say({"command": list(command), "log": str(log)})

    def result(self) -> End:
        """Of the program that was run last; waits for it. A process that died has its own status for the program's."""
        line = self.process.stdout.readline()
        return End(**json.loads(line)) if line else End(self.process.wait())

    def stop(self) -> None:
        """Asks the program to end, and the process after it; does not wait."""
        self._say(None)
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:     # a line that was never read
            pass

    def _say(self, request: dict | None) -> None:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:     # it is dead, which `result` will tell
            pass


# The process ---------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Takes requests from stdin until one of them is null; ends at once where stdin does, with whoever held it."""
    answers = os.fdopen(os.dup(1), "w")
    requests: queue.SimpleQueue[dict | None] = queue.SimpleQueue()

    def read() -> None:
        with open(0, "rb", buffering=0) as lines:       # a buffer's lock would be held when the interpreter ends
            for line in lines:
                requests.put(json.loads(line))
        os._exit(1)         # whoever asked was killed; who comes after must find no folder locked

    threading.Thread(target=read, name="requests", daemon=True).start()
    used = 0.0
    while (request := requests.get()) is not None:
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        end = End(run_here(request["command"]), time.process_time() - used, _memory())
        used = time.process_time()
        print(json.dumps(dataclasses.asdict(end)), file=answers, flush=True)


def run_here(command: Sequence[str]) -> int:
    """Runs a program, a file and its arguments, in this process; its exit status."""
    path, argv = list(sys.path), sys.argv
    sys.argv, sys.path[0] = list(command), str(Path(command[0]).parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:           # as Python's own end of a program
        traceback.print_exc()
        status = 1
    finally:
        forget_flags(command[0])
        sys.argv, sys.path[:] = argv, path
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        gc.collect()
    return status


def forget_flags(program: str) -> None:
    """Takes a program's flags out of absl's table; those of the modules that it imported stay, as the modules do."""
    if "absl.flags" not in sys.modules:
        return
    from absl import flags

    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict().get(program, ())}
    for name in list(flags.FLAGS):
        if name in own or name.split(".")[0] in own:        # --config.FIELD comes into being with the config
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def _memory() -> int:
    """Bytes that this process took at most. Linux hands ru_maxrss on from the process that started this one, which may
    be larger, so the kernel's count for this program alone is read where there is one."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    serve()
