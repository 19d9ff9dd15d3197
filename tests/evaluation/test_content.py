"""What a reply says is told apart from the letter that it picks."""

import re

import numpy as np
import pytest

from lvr_jax.evaluation.content import ContentReader, Said, with_content, word_before
from lvr_jax.evaluation.results import Result
from lvr_jax.evaluation.rows import Row
from lvr_jax.latents.positions import spoken

COLOUR = Row("0", "Which colour?", "B", "red", options=("blue", "red", "green", "grey"))
DIGIT = Row("1", "Which digit?", "A", "7", options=("7", "3", "1", "4"))
ROWS = [COLOUR, DIGIT]


@pytest.mark.parametrize(
    "reply, word",
    [
        ("red <answer> B </answer><|im_end|>", "red"),
        ("<|lvr_start|><|lvr_latent_end|><|lvr_end|>\nThe red. <answer> B", "red"),
        ("<answer> B </answer>", ""),
        ("red<|im_end|>", "red"),
        ("<|lvr_start|><|lvr_end|>\nred<|lvr_latent_end|><|lvr_end|>\norange <answer> B </answer>", "orange"),
        ("Two cats.\nThe red cat <answer> B </answer>", "red cat"),
        ("red <answer> A </answer>\nno, blue <answer> B </answer>", "no, blue"),
    ],
)
def test_the_word_is_what_stands_before_the_last_mark(reply, word):
    assert word_before(reply) == word
    if "<answer>" in reply:
        boxed = reply.replace("<answer> ", "\\boxed{").replace(" </answer>", "}")
        assert word_before(boxed, re.compile(r"\\boxed\{")) == word


def test_what_is_stored_where_a_latent_is_fed_is_not_said():
    """A step's token is what it picked; it is read only if the next step feeds text."""
    latent = np.array([0, 0, 0, 1, 1, 0, 0], bool)
    live = np.array([1, 1, 1, 1, 1, 1, 0], bool)
    #                      newline, start, (junk), (junk), end marker, word
    assert spoken(live, latent).tolist() == [True, True, False, False, True, True, False]


def test_a_format_has_words_where_most_replies_name_some_option():
    assert ContentReader.of(ROWS, ["green", "4"]).worded, "wrong answers are words all the same"
    assert ContentReader.of(ROWS, ["4", "perhaps"]).worded
    assert not ContentReader.of(ROWS, ["", ""]).worded
    assert not ContentReader.of(ROWS, ["the picture shows a red 7", "i think"]).worded, "reasoning is no word"


@pytest.mark.parametrize(
    "word, letter, said",
    [
        ("red", "B", Said("red", True, True, True)),
        ("red", "A", Said("red", True, False, True)),
        ("blue", "B", Said("blue", False, False, True)),
        ("pink", "B", Said("pink", False, None, True)),
        ("7", None, Said("7", False, None, True)),
        ("mumble", None, Said("mumble", False, None, False)),
        ("", "B", Said(None, False, None, True)),
        ("", None, Said(None, False, None, False)),
    ],
)
def test_content_and_letter_are_scored_apart(word, letter, said):
    assert ContentReader.of(ROWS, ["red", "7"]).read(0, word, letter) == said


@pytest.mark.parametrize(
    "letter, said",
    [("B", Said("red", True, None, True)), ("A", Said("blue", False, None, True)),
     (None, Said(None, False, None, False)), ("(", Said(None, False, None, False))],
)  # fmt: skip
def test_where_letters_are_all_there_is_the_content_is_the_options_text(letter, said):
    reader = ContentReader.of(ROWS, ["", ""])
    assert reader.read(0, "whatever came before", letter) == said
    drawn = ContentReader.of([Row("2", "Which picture?", "C", "")], [""])
    assert drawn.read(0, "", "C") == Said("C", True, None, True), "options that are drawn have no text"


def test_results_of_a_file_are_filled_in_together():
    results = [Result("0", True, parsed="B", word="blue"), Result("1", False, parsed="B", word="7")]
    first, second = with_content(ROWS, results)
    assert (first.content, first.content_correct, first.follows, first.readable) == ("blue", False, False, True)
    assert (second.content, second.content_correct, second.follows) == ("7", True, False)
    assert first.correct and not second.correct, "the letter's verdict stays the protocol's"
    opened = with_content([Row("3", "What?", None, "a Red ball")], [Result("3", True, parsed="red ball")])[0]
    assert (opened.content, opened.content_correct, opened.follows) == ("red ball", True, None)
