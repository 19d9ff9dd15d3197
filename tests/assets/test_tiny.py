"""Is the checkpoint that ships with the project what its card says?"""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from lvr_jax.checkpoints import open_hf
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


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_whole_hugging_face_folder(name):
    assert (TINY / name).exists()
