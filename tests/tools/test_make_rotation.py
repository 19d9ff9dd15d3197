"""The rotation base is made as its card says."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from lvr_jax.data.polyominoes import rotate
from lvr_jax.data.rotation_scenes import DEGREES, ORDINALS, RotationAnalogies
from lvr_jax.models.qwen2_5_vl.config import SIZES
from tiny import panels
from tiny.tokenizer import make_rotation_tokenizer, make_tokenizer
from tiny.warm_up import NOTHING, word_rows

ROOT = Path(__file__).resolve().parents[2]


def lit(image: np.ndarray, panel: int) -> np.ndarray:
    """[16] bool: cells of a panel, read from the pixels."""
    row, column = divmod(panel, 4)
    view = image[28 * row:28 * row + 28, 28 * column:28 * column + 28].max(2)
    return np.array([[view[4 + 6 * r, 4 + 6 * c] > 70 for c in range(4)] for r in range(4)]).reshape(-1)


@pytest.mark.parametrize("view", panels.VIEWS, ids=["all", "solution hidden", "shape 3 too"])
def test_panels_are_told_what_they_show_and_nothing_of_what_is_hidden(view):
    scenes = RotationAnalogies(60, seed=3, **view)
    for index in range(60):
        sample, a = scenes[index], scenes.analogy(index)
        said, image = panels.labels(scenes, index), (sample.input_images or sample.images)[0]
        assert all(np.array_equal(said["cells"][n], lit(image, n)) for n in range(8))
        assert said["turn"][1] == a.quarters - 1 and said["place"][4:].tolist() == [0, 1, 2, 3]
        assert (said["turn"][[0, 2]] == NOTHING).all() and (said["place"][:3] == NOTHING).all()
        hidden = scenes.mask_box
        assert (said["place"][3], said["turn"][3]) == ((NOTHING,) * 2 if hidden else (a.slot, a.quarters - 1))
        for option, turn in zip(a.options, said["turn"][4:]):
            if scenes.mask_query or option == a.third:
                assert turn == NOTHING
            else:
                assert rotate(a.third, turn + 1) == option


def test_words_of_the_analogies_are_tokens_and_tokens_of_both_keep_their_embeddings():
    new, old = make_rotation_tokenizer(), make_tokenizer()
    for words in (ORDINALS, DEGREES):
        word_rows(new, words)
    assert all(len(new.encode(text)) == 1 for word in ORDINALS for text in (word, f" {word}"))
    assert len(new) <= SIZES["tiny"].text.vocab
    embed = np.random.default_rng(0).normal(size=(SIZES["tiny"].text.vocab, 8)).astype(np.float32)
    carried = np.asarray(panels.carry(embed, old, new, 0))
    for text in ("What", " colour", "<|im_end|>", "<|lvr|>"):
        assert np.array_equal(carried[new.encode(text)[0]], embed[old.encode(text)[0]]), text


@pytest.mark.parametrize("flag", ["--warm-up-steps", "--steps"])
def test_no_steps_are_refused_before_anything_is_made(tmp_path, capsys, flag):
    import make_rotation

    with pytest.raises(SystemExit) as end:
        make_rotation.main(["--workdir", str(tmp_path / "work"), "--output", str(tmp_path / "out"), flag, "0"])
    assert end.value.code == 2 and f"{flag} is 0, expected at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_the_tiny_checkpoint_to_a_hugging_face_folder_in_a_few_steps(tmp_path, monkeypatch, two_layers_checkpoint):
    import make_rotation
    from lvr_jax.evaluation.subject import open_subject

    def smaller(get_config, size="tiny"):
        c = get_config(size)
        c.rows = 2
        return c

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(make_rotation, "BASE", two_layers_checkpoint)
    monkeypatch.setattr(make_rotation, "ITEMS", 8)
    monkeypatch.setattr(make_rotation.rotation_card, "VIEWS", {"held-out shapes": {"split": "test"}})
    monkeypatch.setattr(make_rotation.panels, "warm_up", functools.partial(make_rotation.panels.warm_up, rows=8))
    for module in (make_rotation.rotation_steps, make_rotation.rotation_base):
        monkeypatch.setattr(module, "get_config", functools.partial(smaller, module.get_config))
    out = tmp_path / "out"
    command = ["--workdir", str(tmp_path / "work"), "--output", str(out), "--warm-up-steps", "2", "--steps", "2"]
    assert make_rotation.main(command) == 0
    card = (out / "README.md").read_text()
    assert re.search(r"^\| held-out shapes \| [\d.]+% \[", card, re.MULTILINE) and "2 steps: **each panel" in card
    subject = open_subject(out, system="none")
    assert subject.config.image_token_id == make_rotation_tokenizer().id("<|image_pad|>")
    before = {path.name: path.read_bytes() for path in (tmp_path / "work").glob("*.json")}
    assert make_rotation.main(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "work").glob("*.json")} == before
    assert {"warm_up.json", "rotation_steps.json", "rotation_base.json"} <= set(before)
