"""Sets how programs are compiled, before any test starts JAX; deals files out to the workers of pytest-xdist; leaves
alone test files that cannot be imported here: parity tests need torch, the browser's Gradio and Chromium."""

import collections
import gc
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import quick


def pytest_configure(config):
    """Workers of pytest-xdist inherit the folder of compiled programs from the process that starts them;
    `--cache-clear` empties it, and without pytest's cache it lasts one session."""
    if not hasattr(config, "workerinput"):
        folder = _kept(config)
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="lvr_jax_tests_")
            config.add_cleanup(temporary.cleanup)
            folder = Path(temporary.name)
        quick.begin(folder)
    gc.set_threshold(20_000)    # what JAX traces lives on: a tenth of the time went into looking at it again


def _kept(config) -> Path | None:
    """A folder in pytest's cache; None without one, or in a checkout that can only be read."""
    try:
        folder = config.cache.mkdir("compiled") if hasattr(config, "cache") else None
    except OSError:
        return None
    return folder if folder and os.access(folder, os.W_OK) else None


@pytest.fixture(scope="session")
def two_layers_checkpoint(tmp_path_factory):
    """A checkpoint in Hugging Face's layout, where it does not matter what was learnt."""
    import two_layers

    return two_layers.checkpoint(tmp_path_factory.mktemp("base") / two_layers.NAME)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files, as workers that share one would each make what its tests share; in the order of the collection."""
    if config.getoption("dist") != "load":          # asked for another way
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """Under pytest-xdist the longest files first, those with the most slow tests, so that workers end together."""
    if hasattr(config, "workerinput"):
        slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


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
