"""Leaves alone test files that cannot be imported here: parity tests need torch, the browser's Gradio and Chromium."""

import importlib.util
import shutil
from pathlib import Path


def pytest_ignore_collect(collection_path, config):
    """Leaves out what nobody asked for and cannot be imported; `-m parity` and `-m browser` fail where they cannot run,
    and pass nothing."""
    asked = config.getoption("markexpr")
    if collection_path.name.endswith("parity.py") and ("not parity" in asked or asked in ("tpu", "browser")):
        return True
    if collection_path.name.endswith("browser.py") and asked != "browser" and not _browser():
        return True
    return None


def _browser() -> bool:
    """Whether the playground can be served and driven here."""
    packages = all(importlib.util.find_spec(name) for name in ("gradio", "playwright"))
    system = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return packages and (system or any(Path("~/.cache/ms-playwright").expanduser().glob("chromium*")))
