"""The package as `pip install .` puts it elsewhere: programs and experiments from any folder, without the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the console script that an installer writes does, whatever the entry point is.
SCRIPT = """import sys
from importlib.metadata import distribution
(lvr,) = distribution("lvr_jax").entry_points.select(name="lvr")
sys.exit(lvr.load()())"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("lvr_jax", "configs", "tools"):
        shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    build = "import setuptools.build_meta as b; b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=place / "source", check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(place / "installed")
    shutil.rmtree(place / "source")
    return place / "installed"


@pytest.fixture
def lvr(installed, tmp_path, monkeypatch):
    """Runs the console command in an empty folder, with no other lvr_jax to be found."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}

    def run(*arguments: str, script: str = SCRIPT):
        return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, text=True,
                              capture_output=True, timeout=900)  # fmt: skip

    return run


def test_every_package_of_the_checkout_is_in_the_wheel():
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    listed = set(found["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for top in ("lvr_jax", "configs", "tools") for path in
               (ROOT / top).rglob("*.py")}  # fmt: skip
    # What looks after the code itself needs the checkout.
    here = {Path("tools/benchmarks"), Path("tools/tiny")}
    names = {".".join(f.parts if f.parts[0] == "lvr_jax" else ("lvr_jax", "shipped", *f.parts)) for f in folders - here}
    assert listed == names


def test_help_lists_programs_and_experiments(lvr, installed):
    said = lvr("--help")
    assert said.returncode == 0, said.stderr
    assert "  convert " in said.stdout and "p_lvr_2_matched" in said.stdout
    place = lvr(script="import lvr_jax; print(lvr_jax.__file__)").stdout
    assert place.startswith(str(installed))


def test_an_unknown_program_is_one_line(lvr):
    said = lvr("trian")
    assert said.returncode == 2 and said.stderr.startswith("lvr: there is no program 'trian'")
    assert len(said.stderr.splitlines()) == 1


def test_the_tiny_checkpoint_is_converted_from_another_folder(lvr, tmp_path):
    said = lvr("convert", "to-flax", "lvr_jax/assets/tiny", "tiny", "--verify")
    assert said.returncode == 0, said.stderr
    assert "verified" in said.stdout and (tmp_path / "tiny/lvr_jax.json").exists()
    said = lvr("convert", "to-flax", "nowhere", "other")
    assert said.returncode == 2 and said.stderr.startswith("convert: ") and len(said.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_experiment_is_inspected_by_name(lvr, tmp_path):
    said = lvr("inspect-data", "--config", "masked_input:tiny", "--output", "seen")
    assert said.returncode == 0, said.stderr
    assert len(list((tmp_path / "seen").glob("*.png"))) == 1


SNIPPET = """
import numpy as np
import lvr_jax
from PIL import Image

FEW = {"conditions": {"names": ["zero", "donor"], "sigmas": []}, "probes": {"controls": 2}, "alignment": {"count": 0}}

if __name__ == "__main__":
    Image.fromarray(np.full((84, 84, 3), 90, np.uint8)).save("photo.png")
    items = lvr_jax.scenes(4)

    def my_condition(latents):
        return latents[::-1]

    model = lvr_jax.open(lvr_jax.TINY_LVR)
    reply = model.ask("photo.png", "What colour is the cup?", options=["red", "blue"])
    reply.text, reply.letter, reply.content, reply.margin
    assert "".join(piece.text for piece in model.stream(items[0])) == model.ask(items[0]).text
    assert reply.latents.shape == (4, 128) and len(reply.nearest) == len(reply.lens) == 4 and reply.attention
    replies = model.sweep(items, ["zero", "donor", lvr_jax.noise(0.3), my_condition])
    states = model.states(items, position="latent_0", layer=2)
    audit = lvr_jax.audit(lvr_jax.TINY_LVR, "digit_search", light=True, options={"size": 8}, draws=100, **FEW)
    audit.table("conditions")
    print(len(replies), states.shape, audit.report("out"))
"""


@pytest.mark.slow
def test_the_interface_works_from_the_wheel_in_a_fresh_process(lvr, tmp_path):
    """The snippet of the package's docstring, and what the replies hold, on the checkpoint that ships."""
    said = lvr(script=SNIPPET)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["5", "(4,", "128)", "out/report.html"] and (tmp_path / "out/report.html").exists()


@pytest.mark.slow
def test_a_question_is_asked_from_another_folder(lvr, tmp_path):
    said = lvr("ask", "--conditions", "zero")
    assert said.returncode == 0, said.stderr
    answers = [line.split() for line in said.stdout.splitlines() if line.startswith(("answer", "zero"))]
    assert answers[0][1:4] == ["A", "orange", "right"] and answers[1][:2] == ["zero", "A"]
    assert not list(tmp_path.iterdir()), "nothing is written where it was asked"


@pytest.mark.slow
def test_the_study_starts_its_programs_from_the_package(lvr, tmp_path):
    none = [f"--config.runs.{setting}=" for setting in ("controls", "believed", "bottleneck", "masked")]
    said = lvr("reproduce", "--workdir", "study", "--config.only=convert", "--config.runs.plain=base,lvr", *none)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "study/bases/tiny/lvr_jax.json").exists()
