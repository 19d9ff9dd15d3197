"""Progress is a bar in a terminal and a line now and then in a log."""

import contextlib
import io
import os
import pty
import time

import pytest

from lvr_jax import progress


@pytest.fixture
def every(monkeypatch):
    """A line every fifth of a second at most, counted from now."""
    monkeypatch.setattr(progress, "EVERY", 0.2)
    monkeypatch.setattr(progress, "_printed", [time.monotonic()])


def work(steps: int, **options) -> None:
    with progress.tqdm(total=steps, desc="work", unit="item", **options) as bar:
        for _ in range(steps):
            time.sleep(0.01)
            bar.set_postfix_str("loss 0.5")     # asks for a display at once
            bar.update()


def test_a_log_has_lines_at_intervals_and_no_carriage_returns(every):
    log, began = io.StringIO(), time.monotonic()
    work(100, file=log)
    lines = log.getvalue().splitlines()
    assert 1 <= len(lines) <= (time.monotonic() - began) / 0.2
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()
    assert lines[0].startswith("work: ") and "/100 [" in lines[0] and "loss 0.5" in lines[0]


def test_bars_of_one_process_share_their_lines_and_short_work_prints_none(every):
    log, began = io.StringIO(), time.monotonic()
    for _ in range(40):
        work(1, file=log)
    assert len(log.getvalue().splitlines()) <= (time.monotonic() - began) / 0.2
    short = io.StringIO()
    progress._printed[0] = time.monotonic()
    work(3, file=short)
    assert short.getvalue() == ""


def test_a_format_of_its_own_loses_its_bar(every):
    log = io.StringIO()
    progress._printed[0] -= 1
    with progress.tqdm(total=100, bar_format="{desc} {bar} {n:3.0f} %{postfix}", file=log) as bar:
        bar.n = 40
        bar.set_description_str("train lvr", refresh=False)
        progress._printed[0] -= 1
        bar.set_postfix_str("about 3 min left", refresh=True)
    assert log.getvalue().splitlines()[-1] == "train lvr  40 %, about 3 min left"


def test_a_terminal_has_tqdms_bar():
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        work(3, file=terminal, mininterval=0)
    said = ""
    with contextlib.suppress(OSError):      # the other end is closed: this is the end of what was said
        while part := os.read(reader, 100_000).decode(errors="replace"):
            said += part
    os.close(reader)
    assert "\r" in said and "3/3" in said and "work" in said
