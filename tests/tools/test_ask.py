"""One command asks about one picture: the shipped checkpoint answers and shows its latents, also under conditions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ask
import lvr_jax
from lvr_jax.latents import stream as engine

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--max-new-tokens", "24")


@pytest.fixture(autouse=True)
def flags(monkeypatch):
    """What the program says to XLA does not outlive a test."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture
def photo(tmp_path):
    scene = lvr_jax.scenes(1)[0]
    Image.fromarray(scene.images[0]).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.mark.slow
def test_the_answer_the_latents_and_the_table_are_printed_and_drawn(tmp_path, capsys):
    """Scene 0 is answered right; zeros in the latents' place take the word away, another scene's latents are named."""
    drawing = tmp_path / "answer.png"
    assert ask.main([*SHORT, "--conditions", "zero,donor,noise=0.3", "--save", str(drawing)]) == 0
    out = capsys.readouterr().out
    scene = lvr_jax.scenes(1)[0]
    assert scene.question.splitlines()[0] in out and f"{scene.letter} {scene.answer}  right" in out
    assert "[latent 0][latent 1][latent 2][latent 3]" in out and "[latent 4]" not in out
    latents = re.findall(r"^(\d) +(\d+)\.\.(\d+), (\d+)\.\.(\d+)   (-?[\d.]+) +'", out, re.MULTILINE)
    assert [int(row[0]) for row in latents] == [0, 1, 2, 3]
    assert all(int(x1) - int(x0) == int(y1) - int(y0) == 28 and -1 <= float(c) <= 1 for _, x0, x1, y0, y1, c in latents)
    table = out.split("condition ")[1].splitlines()[1:5]
    assert [line.split()[0] for line in table] == ["clean", "zero", "donor", "noise_0.3"]
    assert "changed" in table[1] and "digits-test-0-" in table[2]
    with Image.open(drawing) as picture:
        assert picture.size[0] > 500


def test_a_picture_of_ones_own_is_asked_the_same(photo, capsys):
    """The scene as a file, with its question and options given by hand, is the scene."""
    scene = lvr_jax.scenes(1)[0]
    question = scene.question.splitlines()[0]
    assert ask.main([*SHORT, "--image", photo, "--question", question, "--options", ",".join(scene.options)]) == 0
    own = capsys.readouterr().out
    assert ask.main(SHORT) == 0
    assert own.splitlines() == [line.replace("  right", "") for line in capsys.readouterr().out.splitlines()]


def test_the_reply_is_printed_while_it_is_decoded(photo, monkeypatch):
    """Each piece before the next step; what is printed does not depend on who reads it."""
    decoded, printed, step = [0], [], engine.step

    def counted(*arguments, **options):
        decoded[0] += 1
        return step(*arguments, **options)

    monkeypatch.setattr(engine, "step", counted)
    monkeypatch.setattr(ask, "print", lambda *text, **how: printed.append((decoded[0], *text, how)), raising=False)
    assert ask.main(SHORT) == 0
    pieces = [(steps, text) for steps, text, how in (each for each in printed if len(each) == 3) if how.get("flush")]
    latents = [steps for steps, text in pieces if text.startswith("[latent ")]
    assert latents == list(range(latents[0], latents[0] + 4)) and latents[-1] < decoded[0] - 3
    assert "<answer> A </answer>" in "".join(text for _, text in pieces)


@pytest.mark.parametrize("text", ["one", "\n a\n\n b \n", "", " \n", "[latent 0]\n\n[latent 1]\n<end>\n"])
def test_a_reply_in_pieces_is_printed_as_the_whole_is(text):
    whole = text.strip().replace("\n", "\n" + " " * 11)
    assert "".join(ask.indented(text)) == whole == "".join(ask.indented([text]))


def test_conditions_on_several_latents_are_one_name():
    assert ask.names_of("noise=0.3,zero@0,2,mean") == ["noise=0.3", "zero@0,2", "mean"]
    assert ask.names_of("zero") == ["zero"] and ask.names_of("zero,mean@1") == ["zero", "mean@1"]


def test_a_turned_photo_is_said_to_be_shown_as_it_is_stored(tmp_path, capsys):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, exif in (("turned.jpg", turned), ("plain.jpg", Image.Exif())):
        Image.new("RGB", (40, 30)).save(tmp_path / name, exif=exif)
        assert ask.main(["--image", str(tmp_path / name), "--question", "What?", "--checkpoint", "nowhere"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and said[0].endswith("turned.jpg is shown to the model as it is stored, its EXIF rotation "
                                               "ignored")  # fmt: skip


BAD = {
    "no such picture": (["--image", "nowhere.png", "--question", "What?"], "nowhere.png: cannot be read"),
    "no picture": (["--image", __file__, "--question", "What?"], "cannot be read"),
    "one option": (["--question", "What?", "--options", "red"], "options is ['red']"),
    "an option twice": (["--question", "What?", "--options", 'red,"red"'], "options has 'red' twice"),
    "no text": (["--question", " "], "question is ' '"),
    "no number": (["--question", "What?", "--box", "a,b"], "--box is 'a,b'"),
    "no such condition": (["--conditions", "zeros"], "condition 'zeros'"),
    "no such checkpoint": (["--checkpoint", "nowhere"], "nowhere: no such folder"),
    "no budget": (["--budget", "0"], "budget is 0, expected a whole number"),
    "endless latents": (["--budget", "1000000"], "budget is 1000000, expected a whole number, 1 to 4096"),
    "negative noise": (["--conditions", "noise=-1"], "sigma is -1.0, expected 0 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(case, capsys):
    arguments, said = BAD[case]
    assert ask.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("ask: ") and error.count("\n") == 1


def test_a_donor_is_asked_for_before_weights_are_read(photo, capsys):
    arguments = ["--image", photo, "--question", "What?", "--conditions", "donor", "--checkpoint", "nowhere"]
    assert ask.main(arguments) == 2
    assert "expected --donor FILE" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    (["--image", "photo.jpg"], "--question is missing"), (["--options", "a,b"], "which is missing"),
    (["--options", ""], "which is missing"), (["--donor", "photo.jpg"], "which is missing"),
    (["--scene", "-1"], "--scene is -1"), (["--scene", "9" * 20], f"--scene is {'9' * 20}, expected 0 to 1000000000"),
    (["--save", "answer.txt"], "ends in .png"),
    (["--save", ".png"], "ends in .png"),
    (["--save", "nowhere/answer.png"], "its folder does not exist"),
])  # fmt: skip
def test_wrong_flags_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        ask.main(arguments)
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_only_weights_are_measured_not_a_whole_disk(tmp_path, monkeypatch):
    """A folder that was named by mistake, such as /, is not walked through before it is refused."""
    for name in ("home/weights.safetensors", "params/d/0", "model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for folder, small in (("home", True), (".", True), ("params/d", False), ("nowhere", False)):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        ask.compile_for_one_question(str(tmp_path / folder))
        assert ("XLA_FLAGS" in os.environ) == small, folder
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "params/d/0").unlink()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    ask.compile_for_one_question(str(tmp_path))
    assert "XLA_FLAGS" not in os.environ, "home is not looked into"


def test_help_has_an_example():
    said = subprocess.run([sys.executable, ROOT / "tools/ask.py", "--help"], capture_output=True, text=True, check=True)
    assert "python tools/ask.py --checkpoint LVR-7B --image photo.jpg" in said.stdout
