"""A process for programs that a file of tests runs many times, each for a moment."""

import os
from pathlib import Path

import pytest

from study.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Runs `tools/NAME.py` with arguments, and returns its exit status and what it said: one program after another in
    one process, as on a core of a study, so that Python and JAX start once."""
    folder, cores = tmp_path_factory.mktemp("warm"), sorted(os.sched_getaffinity(0))
    worker, said = Worker(cores[os.getpid() % len(cores)], ROOT, os.environ, folder / "log"), folder / "said"

    def run(name: str, *arguments) -> tuple[int, str]:
        said.unlink(missing_ok=True)
        worker.run([str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)], said)
        status = worker.result().status
        return status, said.read_text()

    yield run
    worker.stop()
    worker.wait()
