"""Is the checkpoint that ships with the project what its card says?"""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from transformers import AutoTokenizer

import make_tiny
from lvr_jax.checkpoints import open_hf
from lvr_jax.data.chat import render_prompt
from lvr_jax.data.tokenizers import load_tokenizer
from lvr_jax.evaluation.protocol import protocol
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.models.qwen2_5_vl.config import SIZES
from tiny.tokenizer import make_tokenizer

TINY = Path(__file__).resolve().parents[2] / "lvr_jax/assets/tiny"


def test_it_has_the_size_the_tokenizer_and_the_weight_of_its_card():
    source = open_hf(TINY)
    assert source.config == SIZES["tiny"]
    assert (TINY / "tokenizer.json").read_text() == make_tokenizer().backend.to_str(), "tools/make_tiny.py makes it"
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 4e6


def test_it_answers_as_its_card_says(tmp_path):
    """On 100 of the card's scenes; three standard errors of 100 answers are allowed."""
    said = float(re.search(r"\| all \| ([\d.]+)%", (TINY / "README.md").read_text())[1]) / 100
    assert said > 0.5, "twice chance at least"
    ways = protocol("clean", max_new_tokens=16)
    benchmark = load_benchmark("digit_search", None, ways, size=100, split="test")
    subject = open_subject(TINY, system="none", dtype=jnp.float32)
    marks = run(subject, benchmark, ways, tmp_path / "out.jsonl", rows=50, progress=False).marks()
    right = sum(mark.correct for mark in marks) / 100
    assert abs(right - said) < 3 * (said * (1 - said) / 100) ** 0.5 + 0.01


def test_its_chat_template_writes_what_qwens_writes():
    """Byte for byte what prompts are without one, here and in transformers; `tools/make_tiny.py` ships it."""
    tokenizer = load_tokenizer(TINY)
    assert tokenizer.chat_template == make_tiny.TEMPLATE.read_text()
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the 7?"}]
    plain = render_prompt(dataclasses.replace(tokenizer, chat_template=None), content)
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
    theirs = AutoTokenizer.from_pretrained(TINY).apply_chat_template
    assert render_prompt(tokenizer, content) == render_prompt(tokenizer, content, system="") == plain
    assert theirs(messages, tokenize=False, add_generation_prompt=True) == plain
    turns = [*messages[1:], {"role": "assistant", "content": "red"}]
    assert theirs(turns, tokenize=False) == plain + "red<|im_end|>\n"
    numbered = theirs(messages, tokenize=False, add_vision_id=True)
    assert "user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>What" in numbered


FILES = (
    "config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_whole_hugging_face_folder(name):
    assert (TINY / name).exists()
