"""When a checkpoint is due, the same step in every process, and what a damaged or refused one says."""

import asyncio
import gc
import logging as standard_logging
import sys
import types

import jax
import pytest
from absl import logging

from lvr_jax.checkpoints import orbax_io
from lvr_jax.training import checkpointing
from lvr_jax.training.checkpointing import Checkpoints, NotSaved, _Clock, _failing


class Processes:
    """Clocks of several processes in one, over a key-value store as JAX has it."""

    def __init__(self, monkeypatch, count: int, minutes: float, ahead: int):
        self.held, self.now, self.index = {}, 0.0, 0
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: self.index)
        monkeypatch.setattr(checkpointing, "store", lambda: self)
        monkeypatch.setattr(checkpointing, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        self.clocks = [_Clock(minutes, ahead) for _ in range(count)]

    def key_value_set(self, name, value):
        assert name not in self.held
        self.held[name] = value

    def key_value_try_get(self, name):
        if name not in self.held:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {name}")
        return self.held[name]

    def due(self, index: int, step: int) -> bool:
        self.index = index
        return self.clocks[index](step)


@pytest.mark.parametrize("leads", [0, 1, 2])
def test_all_processes_save_the_same_step_whoever_is_ahead(monkeypatch, leads):
    """One process runs three steps before the others, as far as two steps under way allow; a step takes a minute."""
    processes = Processes(monkeypatch, 3, minutes=10, ahead=2)
    saved = [[], [], []]
    progress = [0, 0, 0]
    while min(progress) < 60:
        behind = [i for i in range(3) if i != leads and progress[i] < 60]
        index = leads if progress[leads] < min(progress[i] for i in range(3) if i != leads) + 3 else behind[0]
        index = min(behind, key=lambda i: progress[i]) if index != leads and behind else index
        progress[index] += 1
        processes.now = 60.0 * min(progress)
        if processes.due(index, progress[index]) or progress[index] == 25:      # and one for another reason
            saved[index].append(progress[index])
            processes.clocks[index].restart()
    shortest = min(map(len, saved))
    assert saved[0][:shortest] == saved[1][:shortest] == saved[2][:shortest]
    assert 4 <= shortest <= 7 and 25 in saved[0]


def test_one_process_saves_when_the_minutes_are_over_and_zero_never(monkeypatch):
    processes = Processes(monkeypatch, 1, minutes=10, ahead=2)
    found = []
    for step in range(1, 40):
        processes.now += 130.0
        if processes.due(0, step):
            found.append(step)
            processes.clocks[0].restart()
    assert found == [5, 10, 15, 20, 25, 30, 35]
    assert not any(Processes(monkeypatch, 1, 0, 2).due(0, step) for step in range(9))


def test_what_cannot_be_written_is_one_line(tmp_path):
    for error, said in (
        (OSError(28, "No space left on device"), "the disk is full"),
        (ValueError("Error writing x: No space left on device [source]"), "the disk is full"),
        (ValueError("PERMISSION_DENIED:\n no access"), "ValueError: PERMISSION_DENIED: no access"),
    ):
        with pytest.raises(NotSaved, match="could not be written") as found:
            with _failing(tmp_path / "checkpoints/5"):
                raise error
        assert said in str(found.value) and "\n" not in str(found.value) and "checkpoints/5" in str(found.value)


@pytest.mark.slow
def test_a_failed_save_prints_nothing_but_its_line(tmp_path, monkeypatch):
    """What Orbax's and tensorstore's threads print of an error that is raised as well; other errors are still shown."""
    keeper = Checkpoints(tmp_path)
    try:
        for name, shown in (("/lib/orbax/checkpoint/futures.py", False), ("/lib/lvr_jax/loop.py", True)):
            try:
                raise OSError("no space")
            except OSError:
                record = logging.get_absl_logger().makeRecord("absl", 40, name, 1, "said", (), sys.exc_info())
            assert bool(logging.get_absl_logger().filter(record)) == shown
        for said, shown in (("Event loop is closed", False), ("something else", True)):
            printed = []
            monkeypatch.setattr(sys, "__unraisablehook__", printed.append)
            error = types.SimpleNamespace(exc_type=RuntimeError, exc_value=RuntimeError(said), object=None)
            orbax_io._without_late_reads_and_writes(error)
            assert bool(printed) == shown
        for folder, shown in (("orbax", False), ("mine", True)):
            printed = []
            monkeypatch.setattr(sys, "__unraisablehook__", printed.append)
            coroutine = _written_in(f"/lib/{folder}/serialization.py")()
            error = types.SimpleNamespace(exc_type=Exception, exc_value=Exception("damaged"), object=coroutine)
            orbax_io._without_late_reads_and_writes(error)
            coroutine.close()
            assert bool(printed) == shown
        for folder, shown in (("orbax", False), ("mine", True)):
            printed = []
            monkeypatch.setattr(standard_logging.getLogger("asyncio"), "handle", _kept_by_filters(printed))
            for together, name in ((False, "Task"), (True, "_GatheringFuture")):
                printed.clear()
                asyncio.run(_forgotten(f"/lib/{folder}/serialization.py", together))
                first_lines = [said.partition("\n")[0] for said in printed]
                assert first_lines == [f"{name} exception was never retrieved"] * shown
    finally:
        keeper.close()


def _kept_by_filters(printed: list):
    return lambda record: standard_logging.getLogger("asyncio").filter(record) and printed.append(record.getMessage())


def _written_in(path: str):
    """A coroutine function that fails, of the file `path`."""
    named: dict = {}
    exec(compile("async def write():\n    raise ValueError('no access')", path, "exec"), named)
    return named["write"]


async def _forgotten(path: str, together: bool) -> None:
    """A task that fails and that nobody asks, alone or gathered, of a coroutine written in the file `path`."""
    task = asyncio.ensure_future(_written_in(path)())
    if together:
        task = asyncio.gather(task)
    await asyncio.wait([task])
    del task
    gc.collect()
