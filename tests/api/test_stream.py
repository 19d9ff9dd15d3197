"""A reply is read while it is decoded: text as soon as it is whole, latents in their places, at the end as by `ask`."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "prism"))

import planted  # noqa: E402

import lvr_jax  # noqa: E402
from lvr_jax.api.pieces import Piece, pieces  # noqa: E402
from lvr_jax.latents import stream as engine  # noqa: E402

SHORT = {"budget": 3, "max_new_tokens": 12}
QUESTION, OPTIONS = "Is the picture bright or dark?", ["bright", "dark"]
PICTURE = np.full((56, 56, 3), 200, np.uint8)


def decode(tokens):
    """A byte is a token."""
    return bytes(tokens).decode("utf-8", "replace")


def read(text: bytes, latents=()):
    """The pieces of a text, with a latent after so many of its bytes."""
    steps = [(byte, False) for byte in text]
    for at in sorted(latents, reverse=True):
        steps.insert(at, (0, True))
    return list(pieces(iter(steps), decode))


def test_half_a_character_waits_for_the_rest_of_it():
    assert [piece.text for piece in read("aé日🙂".encode())] == ["a", "é", "日", "🙂"]


def test_a_latent_within_a_character_stands_where_it_is_fed():
    assert read("a日".encode(), latents=(0, 2)) == [Piece("", 0), Piece("a"), Piece("", 1), Piece("日")]


def test_bytes_that_are_no_character_are_said_as_all_of_them_together_are():
    for text in (b"\xe6\x97", b"a\xff", b"\xe6\x97abc\xff\xfe", "\N{REPLACEMENT CHARACTER}!".encode(), b""):
        assert "".join(piece.text for piece in read(text)) == decode(text)


def test_a_mark_is_printed_for_a_latent():
    assert "".join(map(str, read(b"<s></s>", latents=(3, 3)))) == "<s>[latent 0][latent 1]</s>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted.plant("carrier", tmp_path_factory.mktemp("planted") / "carrier")


@pytest.fixture(scope="module")
def model(folder):
    return lvr_jax.open(folder, **SHORT)


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps that were decoded."""
    count, step = [0], engine.step

    def counted(*arguments, **options):
        count[0] += 1
        return step(*arguments, **options)

    monkeypatch.setattr(engine, "step", counted)
    return count


def test_pieces_joined_are_the_reply_and_come_one_step_at_a_time(model, steps):
    stream = model.stream(PICTURE, QUESTION, OPTIONS)
    assert steps == [0], "nothing is decoded before it is read"
    found, after = [], []
    for piece in stream:
        found.append(piece)
        after.append(steps[0])
    assert after == list(range(len(found))), "the first comes with the prompt, each other one a step later"
    reply = stream.reply
    assert found == reply.pieces and "".join(piece.text for piece in found) == reply.text
    assert len(reply.tokens) == len(found) == steps[0] + 1


def test_latents_are_marked_where_they_are_fed(model):
    said = [str(piece) for piece in model.stream(PICTURE, QUESTION, OPTIONS)]
    start = said.index(model.subject.spec.stages[0].start)
    assert said[start + 1 : start + 4] == ["[latent 0]", "[latent 1]", "[latent 2]"]
    assert sum(text.startswith("[latent") for text in said) == 3


@pytest.mark.parametrize("switches", [{}, {"protocol": "paper"}, {"force_latents": True}, {"system": "none"}])
def test_a_stream_ends_with_the_reply_of_a_sweep(folder, switches):
    """Under a repetition penalty, with a block that the prompt opens, and where nothing is fed."""
    model = lvr_jax.open(folder, **SHORT, **switches)
    stream = model.stream(PICTURE, QUESTION, OPTIONS)
    marks = [piece.latent for piece in stream if piece.latent is not None]
    (swept,) = model.sweep((PICTURE, QUESTION, OPTIONS), [])["clean"]
    reply = stream.reply
    np.testing.assert_array_equal(reply.tokens, swept.tokens)
    np.testing.assert_array_equal(reply.is_latent, swept.is_latent)
    np.testing.assert_allclose(reply.latents, swept.latents, atol=1e-5)     # of another compiled program
    assert reply.probabilities == pytest.approx(swept.probabilities, abs=1e-5)
    assert marks == list(range(len(reply.latents))) and (len(marks) == 0) == ("system" in switches)


def test_who_stops_reading_stops_the_decoding_and_may_go_on(model, steps):
    stream = model.stream(PICTURE, QUESTION, OPTIONS)
    next(stream), next(stream)
    assert steps == [1]
    assert stream.reply.text == model.ask(PICTURE, QUESTION, OPTIONS).text
    assert list(stream) == []


def test_what_cannot_be_asked_is_refused_at_once(model):
    with pytest.raises(ValueError, match="question is ''"):
        model.stream(PICTURE, "")
    with pytest.raises(ValueError, match="nowhere.png"):
        model.stream("nowhere.png", QUESTION)
