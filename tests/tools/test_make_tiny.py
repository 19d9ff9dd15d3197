"""The tiny checkpoints are made as their cards say, and making them can be stopped."""

import functools
from pathlib import Path

import numpy as np
import pytest
import two_layers

from lvr_jax.data.boxes import box_to_tokens
from lvr_jax.data.digit_pictures import COLOUR_NAMES
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.models.qwen2_5_vl.config import SIZES
from tiny import warm_up
from tiny.tokenizer import SPECIAL, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def test_every_token_is_told_what_lies_mostly_in_it():
    """Labels against the ink itself: a digit's pixels, counted cell by cell."""
    scenes, seen = DigitSearch(200, seed=3, noise=0), 0
    for index in range(200):
        scene = scenes.scene(index)
        digit, colour = warm_up.labels(scene)
        for n in range(len(scene.classes)):
            cells = box_to_tokens(scene.normalised(n), np.array([1, 8, 8]))
            here = [c for c in cells if digit[c] == scene.classes[n] and colour[c] == scene.colours[n]]
            seen += bool(here)
        empty = np.setdiff1d(
            np.arange(16), np.concatenate([box_to_tokens(scene.normalised(n), np.array([1, 8, 8])) for n in range(4)])
        )
        assert (digit[empty] == warm_up.NOTHING).all() and (colour[empty] == warm_up.NOTHING).all()
        assert ((digit >= 0) == (colour >= 0)).all()
    assert seen > 790, "of 800 digits all but a few, whose tokens a neighbour has, are named somewhere"


def test_words_of_the_scenes_are_single_tokens_and_ids_are_those_of_the_config():
    tokenizer, config = make_tokenizer(), SIZES["tiny"]
    for word in (*COLOUR_NAMES, *warm_up.DIGITS, *(f" {c}" for c in (*COLOUR_NAMES, *"ABCD"))):
        assert len(tokenizer.encode(word)) == 1, word
    assert tokenizer.id("<|image_pad|>") == config.image_token_id
    assert tokenizer.id("<|video_pad|>") == config.video_token_id
    assert tokenizer.id("<|vision_start|>") == config.vision_start_token_id
    assert len(tokenizer) <= config.text.vocab
    assert [tokenizer.id(t) for t in SPECIAL] == list(range(380, 394)), "Qwen2.5's order"
    text = "Wörter, die keine Szene kennt: 東京 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_that_begin_alike_are_refused():
    with pytest.raises(ValueError, match="begin with the same token"):
        warm_up.word_rows(make_tokenizer(), ("red", "red"))


@pytest.mark.parametrize("flag", ["--warm-up-steps", "--steps"])
def test_no_steps_are_refused_before_anything_is_made(tmp_path, capsys, flag):
    import make_tiny

    with pytest.raises(SystemExit) as end:
        make_tiny.main(["--workdir", str(tmp_path / "work"), "--output", str(tmp_path / "tiny"), flag, "0"])
    assert end.value.code == 2 and f"{flag} is 0, expected at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_last_stage_needs_the_one_before(tmp_path, capsys):
    import make_tiny

    command = ["--workdir", str(tmp_path / "work"), "--output", str(tmp_path / "tiny"), "--last-stage"]
    assert make_tiny.main(command) == 2
    assert "tiny_one_offset" in capsys.readouterr().err and not (tmp_path / "tiny").exists()


def _smaller(get_config):
    """A stage's config with few rows a step, and few questions to measure it by."""
    def smaller(size: str = "tiny"):
        c = get_config(size)
        c.rows, c.held_out.examples, c.held_out.max_new_tokens = 2, 4, 8
        return c

    return smaller


@pytest.mark.slow
def test_from_nothing_to_a_hugging_face_folder_in_a_few_steps(tmp_path, monkeypatch, capsys):
    import make_tiny
    from lvr_jax.evaluation.subject import open_subject

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(make_tiny, "CONFIG", SIZES[two_layers.NAME])
    monkeypatch.setattr(make_tiny, "ITEMS", 8)
    monkeypatch.setattr(make_tiny, "warm_up", functools.partial(make_tiny.warm_up, rows=8))
    monkeypatch.setattr(make_tiny.tiny_base, "get_config", _smaller(make_tiny.tiny_base.get_config))
    monkeypatch.setattr(make_tiny.offsets, "ROWS", 8)
    monkeypatch.setattr(make_tiny.offsets, "measure", functools.cache(make_tiny.offsets.measure))
    out = tmp_path / "tiny"
    command = ["--workdir", str(tmp_path / "work"), "--output", str(out), "--warm-up-steps", "2", "--steps", "2"]
    assert make_tiny.main(command) == 0
    folders = (out, tmp_path / "tiny_one_offset")
    card, first = (" ".join((folder / "README.md").read_text().split()) for folder in folders)
    assert "2 and then 2 more steps" in card and "0 to 32 tokens of filler" in card and "8 scenes" in card
    assert "2 steps" in first and "every image token is told" in first
    assert open_subject(out, system="none").config == SIZES[two_layers.NAME]
    # What was done is not done again: the stages' figures, and their seconds, are read from their files.
    figures = lambda: {path.name: path.read_bytes() for path in (tmp_path / "work").glob("*.json")}  # noqa: E731
    before = figures()
    assert make_tiny.main(command) == 0
    assert figures() == before and {"warm_up.json", "training.json", "filler_2.json"} <= set(before)
