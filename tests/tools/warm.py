"""A process for programs that tests run many times, each for a moment: Python and JAX start once."""

import os
from collections.abc import Mapping
from pathlib import Path

from study.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


class Warm:
    """Runs `tools/NAME.py` with arguments, one program after another in one process, as on a core of a study."""

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        cores = sorted(os.sched_getaffinity(0))
        self.said = folder / "said"
        self.worker = Worker(cores[os.getpid() % len(cores)], ROOT, environment, folder / "log")

    def __enter__(self) -> "Warm":
        return self

    def __call__(self, name: str, *arguments) -> tuple[int, str]:
        """Its exit status, and what it said on both streams."""
        self.said.unlink(missing_ok=True)
        self.worker.run([str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)], self.said)
        status = self.worker.result().status
        return status, self.said.read_text()

    def __exit__(self, *_) -> None:
        self.worker.stop()
        self.worker.wait()
