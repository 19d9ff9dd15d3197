"""Filler moves the reply and changes nothing else."""

from pathlib import Path

import numpy as np
import pytest

from lvr_jax.data.chat import encode_example
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.filler import draw_filler
from lvr_jax.data.from_config import DataConfig
from lvr_jax.data.sample import ROLE_TEXT, DataError
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import load_tokenizer

MOST = 32


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(__file__).parents[2] / "lvr_jax/assets/tiny")


def encoded(tokenizer, index: int, filler: int):
    sample = DigitSearch(200, seed=2)[index]
    return encode_example(
        sample, tokenizer, TEMPLATES["no_latents"], min_pixels=784, max_pixels=112 * 112,
        answer_format="word_then_letter", filler=filler,
    )  # fmt: skip


def test_prompt_and_reply_stay_and_what_lies_between_is_input_without_a_loss(tokenizer):
    for index in range(40):
        plain, filled = encoded(tokenizer, index, 0), encoded(tokenizer, index, MOST)
        at, more = int(np.argmax(plain.loss_mask)), filled.num_tokens - plain.num_tokens
        between = slice(at, at + more)
        for name in ("tokens", "vision_slot", "loss_mask", "stage", "group", "role"):
            kept = np.delete(getattr(filled, name), np.arange(at, at + more))
            np.testing.assert_array_equal(kept, getattr(plain, name), err_msg=name)
        assert not filled.loss_mask[between].any() and not filled.stage[between].any()
        assert (filled.role[between] == ROLE_TEXT).all()
        # Text goes on one position at a time, filler included.
        assert (np.diff(filled.positions[:, at - 1 :], axis=1) == 1).all()


def test_every_length_and_kind_is_drawn_and_the_sample_alone_decides(tokenizer):
    drawn = [draw_filler(f"scene-{i}", tokenizer, MOST, 16) for i in range(1500)]
    assert {len(ids) for ids, _ in drawn} == set(range(MOST + 1))
    newline = tokenizer.encode("\n")[0]
    plain = np.mean([bool((ids == newline).all() and (slots < 0).all()) for ids, slots in drawn if len(ids) > 4])
    assert 0.45 < plain < 0.55
    assert {int(s) for _, slots in drawn for s in slots} == set(range(-1, 16))
    again = draw_filler("scene-7", tokenizer, MOST, 16)
    for one, other in zip(drawn[7], again):
        np.testing.assert_array_equal(one, other)


def test_a_length_that_is_none_is_refused():
    fields = {"tokenizer": "x", "sources": {"a": {}}, "tokens": 1, "windows": 1, "rows": 1}
    for wrong in (-1, 0.5):
        with pytest.raises(DataError, match=f"data.filler = {wrong}: expected a whole number, at least 0"):
            DataConfig.read({**fields, "filler": wrong})
