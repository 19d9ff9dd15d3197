"""The playground as a person meets it: served by the program, driven in headless Chromium, every request recorded."""

import io
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "prism"))

import planted  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser
# Runs a program and writes down every machine but this one that its process looks up or connects to.
WATCHED = """import runpy, sys
def watch(event, arguments):
    if event not in ("socket.getaddrinfo", "socket.connect"):
        return
    host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    host = host[0] if isinstance(host, tuple) else host
    if host and host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost", "0.0.0.0", "::1"):
        with open(log, "a") as file:
            file.write(f"{event} {host}\\n")
log, *sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Served:
    """The program over two planted checkpoints."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "outside.log"
        places = [str(planted.plant(use, folder / use)) for use in ("carrier", "ignored")]
        (folder / "tmp").mkdir()
        (folder / "empty").mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TMPDIR": str(folder / "tmp"),
                       "HOME": str(folder / "home")}  # fmt: skip
        command = [sys.executable, "-c", WATCHED, str(self.log), str(ROOT / "tools/playground.py"), "--checkpoint",
                   *places, "--port", "0", "--budget", "3", "--max-new-tokens", "12"]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=folder / "empty", env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        ready, _, _ = select.select([self.process.stdout], [], [], 400)
        self.address = self.process.stdout.readline().strip() if ready else ""
        if not self.address.startswith("http"):
            self.process.kill()
            raise AssertionError(self.process.communicate()[1][-2000:])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    found = Served(tmp_path_factory.mktemp("playground"))
    yield found
    found.process.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as made:
        installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        found = made.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(served, browser):
    """The open page, with the first scene answered; no request but to this machine, and no wider than the window."""
    width = 390
    context = browser.new_context(viewport={"width": width, "height": 900})
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    found = context.new_page()
    found.goto(served.address)
    expect(found.locator("#table1 table")).to_be_visible(timeout=120_000)
    yield found
    outside = [url for url in asked if not url.startswith((served.address, "data:", "blob:"))]
    assert len(asked) > 10 and not outside
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def shift(page, label: str, column: int = 0) -> float:
    """What the table of a checkpoint says of the margin under a condition."""
    cell = page.locator(f"#table{column} tr", has=page.get_by_text(label, exact=True)).locator("td").last
    return float(cell.inner_text().replace("−", "-") or "nan")


def wait(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "the page did not change"
        time.sleep(0.1)


def png(level: int) -> dict:
    held = io.BytesIO()
    Image.fromarray(np.full((56, 56, 3), level, np.uint8)).save(held, "PNG")
    return {"name": "own.png", "mimeType": "image/png", "buffer": held.getvalue()}


def upload(page, file: dict) -> None:
    page.locator("#upload").locator("xpath=..").locator("input[type=file]").set_input_files(file)


def test_a_scene_is_drawn_and_asked(page):
    before = page.locator("#picture img").get_attribute("src")
    page.locator("#scene input").fill("7")
    page.locator("#draw").click()
    wait(lambda: page.locator("#picture img").get_attribute("src") != before)
    wait(lambda: page.locator("#question textarea, #question input").input_value() == "Which digit is blue?")
    assert page.locator("#reply0 figure").count() == 3 == page.locator("#reply0 .lvr-z").count()
    assert page.locator("#table0 tr").count() > 20


def test_an_own_picture_is_asked_and_the_slider_and_a_knocked_out_latent_change_the_table(page):
    before = page.locator("#picture img").get_attribute("src")
    upload(page, png(200))
    wait(lambda: page.locator("#picture img").get_attribute("src") != before)
    page.locator("#question textarea, #question input").fill("Is the picture bright or dark?")
    page.locator("#options textarea, #options input").fill("bright, dark")
    page.locator("#ask").click()
    wait(lambda: "bright" in page.locator("#table0").inner_text())
    text = page.locator("#table0").inner_text()
    page.locator("#sigma input[type=number]").fill("9")
    page.keyboard.press("Enter")
    wait(lambda: page.locator("#table0").inner_text() != text)
    page.locator("#chosen label").nth(1).click()
    expect(page.locator("#reply0 figure.lvr-cut")).to_have_count(1, timeout=60_000)
    expect(page.get_by_text("knocked out: zero").first).to_be_visible()
    expect(page.locator("#error .lvr-error")).to_have_count(0)


@pytest.mark.parametrize("name, content, line", [
    ("broken.png", b"\x89PNG\r\n\x1a\n broken", "image broken.png: cannot be read"),
    ("empty.png", b"", "the file is empty"),
    ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image program.png: cannot be read"),
])  # fmt: skip
def test_a_broken_upload_is_one_line_and_the_page_goes_on(page, name, content, line):
    upload(page, {"name": name, "mimeType": "image/png", "buffer": content})
    error = page.locator("#error .lvr-error")
    expect(error).to_contain_text(line, timeout=30_000)
    assert "/tmp" not in error.inner_text() and len(error.inner_text().splitlines()) == 1
    page.locator("#draw").click()
    expect(error).to_have_count(0, timeout=60_000)


def test_a_question_without_text_is_one_line(page):
    page.locator("#question textarea, #question input").fill("  ")
    page.locator("#ask").click()
    expect(page.locator("#error .lvr-error")).to_contain_text("expected a text", timeout=30_000)


def test_stopped_it_ends_well_leaves_nothing_and_has_asked_nobody_else(served):
    assert served.stop() == 0
    assert not list((served.folder / "empty").rglob("*")), "nothing where it was started"
    assert not list((served.folder / "tmp").glob("lvr_jax*"))
    assert not served.log.exists() or not re.findall(r".+", served.log.read_text()), served.log.read_text()
