"""A run's numbers arrive, and a log that cannot be written leaves the run alone."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from object_store import Refused, Store  # noqa: E402

from lvr_jax.training import metrics  # noqa: E402
from lvr_jax.training.metrics import Writer  # noqa: E402


@pytest.fixture(scope="module")
def store():
    with Store() as store, store.here():
        yield store


def steps(text: str) -> list[int]:
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_a_restarted_run_cuts_off_what_it_does_again(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    for step in range(1, 6):
        writer.write(step, {"loss": 1.0})
    writer.close()
    Writer(tmp_path, start=3, tensorboard=False).close()
    assert steps((tmp_path / "metrics.jsonl").read_text()) == [1, 2, 3]


@pytest.mark.parametrize("damage", ["{\n", "[]\n", '{"step": "2"}\n', "\n", "\xff\n", '{"step":'])
def test_lines_without_a_step_are_dropped(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n' + damage.encode("latin-1"))
    writer = Writer(tmp_path, start=9, tensorboard=False)
    writer.write(10, {"loss": 1.0})
    writer.close()
    assert steps((tmp_path / "metrics.jsonl").read_text()) == [1, 10]


def test_what_a_full_disk_refused_is_written_later(tmp_path, monkeypatch):
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    writer.flush()
    (tmp_path / "metrics.jsonl").chmod(0o600)

    def full(self, lines):
        with open(self.path, "ab") as file:
            file.write(b'{"step": 2, "lo')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics._LocalLines, "write", full)
        writer.write(2, {"loss": 1.0})
        writer.flush()
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert steps((tmp_path / "metrics.jsonl").read_text()) == [1, 2, 3]


@pytest.mark.slow
def test_lines_and_events_arrive_in_a_bucket_and_go_on_there(store):
    for start, last in ((0, 3), (2, 4)):
        writer = Writer("gs://bucket/run", start=start)
        for step in range(start + 1, last + 1):
            writer.write(step, {"loss": 1.0})
        writer.close()
        time.sleep(1.1)         # TensorBoard names its files by the second
    assert steps(store.read("run/metrics.jsonl").decode()) == [1, 2, 3, 4]
    events = store.names("run/tensorboard/events")
    assert len(events) == 2 and all(b"loss" in store.read(name) for name in events)


def test_a_bucket_without_access_ends_nothing(store, caplog):
    caplog.set_level("WARNING", logger="absl")
    writer = Writer("gs://bucket/denied")

    def refuse(name):
        if "denied" in name:
            raise Refused(403, "no access")

    store.on_write = refuse
    writer.write(1, {"loss": 1.0})
    writer.close()
    store.on_write = lambda name: None
    assert not store.names("denied/tensorboard") and "the run goes on" in caplog.text


def test_a_store_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    import threading

    released = threading.Event()
    monkeypatch.setattr(metrics, "PATIENCE", 0.2)
    monkeypatch.setattr(Writer, "_read", lambda self: [])
    monkeypatch.setattr(Writer, "_write_all", lambda self: released.wait(60))
    writer = Writer("gs://bucket/hangs", tensorboard=False)
    for step in range(1, 4):
        writer.write(step, {"loss": 1.0})
        writer.flush()
    writer.close()
    assert not released.is_set()
    released.set()
