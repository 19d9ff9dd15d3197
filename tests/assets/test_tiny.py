"""The checkpoints that ship with the project are what their cards say."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from transformers import AutoTokenizer

import lvr_jax
import make_tiny
from lvr_jax.checkpoints import open_hf
from lvr_jax.data.chat import render_prompt
from lvr_jax.data.tokenizers import load_tokenizer
from lvr_jax.evaluation.protocol import protocol
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.models.qwen2_5_vl.config import SIZES
from tiny import rotation_card
from tiny.offsets import LAYOUTS, OFFSETS, measure
from tiny.tokenizer import make_rotation_tokenizer, make_tokenizer

TINY = Path(__file__).resolve().parents[2] / "lvr_jax/assets/tiny"
ONE_OFFSET = TINY.with_name("tiny_one_offset")
ROTATION = TINY.with_name("tiny_rotation")


def said_of(folder: Path) -> dict[str, tuple[float, float]]:
    """(word, letter) that the card states by offset and by layout."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+)% \| ([\d.]+)% \|$", (folder / "README.md").read_text(), re.MULTILINE)
    return {name: (float(word) / 100, float(letter) / 100) for name, word, letter in rows}


def test_the_base_can_reply_anywhere():
    """Of 1,000 scenes, as its card says: at every offset, and behind true latents before it has ever seen a block."""
    said = said_of(TINY)
    assert list(said) == [*map(str, OFFSETS), *LAYOUTS]
    for n in map(str, OFFSETS):
        assert min(said[n]) >= 0.90, f"{n} newlines: {said[n]}"
    for name in LAYOUTS:
        assert said[name][0] >= 0.85, f"{name}: {said[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("folder, offset", [(TINY, 16), (ONE_OFFSET, 2)], ids=["tiny", "tiny_one_offset"])
def test_words_and_letters_behind_newlines_and_latents_are_as_the_card_says(folder, offset):
    """On 100 of the card's scenes; three standard errors of 100 answers are allowed."""
    said, found = said_of(folder), measure(folder, 100, offsets=(offset,), layouts=("p_lvr_3",))
    for name, right in found.items():
        for share, card in zip((right.word, right.letter), said[name]):
            assert abs(share - card) < 3 * (card * (1 - card) / 100) ** 0.5 + 0.01, name


def test_it_has_the_size_the_tokenizer_and_the_weight_of_its_card():
    for folder in (TINY, ONE_OFFSET, TINY.with_name("tiny_lvr")):
        source = open_hf(folder)
        assert source.config == SIZES["tiny"]
        made = make_tokenizer().backend.to_str()
        assert (folder / "tokenizer.json").read_text() == made, "tools/make_tiny.py makes it"
        assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6


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


@pytest.mark.slow
def test_the_rotation_base_answers_as_its_card_says(tmp_path):
    """On 100 of the card's items of every row, three standard errors allowed; whatever hides the query is chance."""
    card = (ROTATION / "README.md").read_text()
    for n, name in enumerate(rotation_card.VIEWS):
        share, low, high = (float(x) / 100 for x in re.search(
            rf"^\| {re.escape(name)} \| ([\d.]+)% \[([\d.]+)%, ([\d.]+)%\]", card, re.MULTILINE).groups())  # fmt: skip
        found = rotation_card.score(ROTATION, name, 100, tmp_path / f"{n}.jsonl").value
        assert abs(found - share) < 3 * (share * (1 - share) / 100) ** 0.5 + 0.01, name
        assert low < 0.25 < high if "shape 3" in name else low > 1 / 3, name
    assert (ROTATION / "tokenizer.json").read_text() == make_rotation_tokenizer().backend.to_str()
    assert sum(path.stat().st_size for path in ROTATION.iterdir()) < 4e6


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


@pytest.mark.slow
def test_the_one_with_latents_answers_as_its_card_says_and_believes_them():
    """On 40 of the card's scenes, three standard errors allowed; another scene's latents cost one answer in ten."""
    card = (TINY.with_name("tiny_lvr") / "README.md").read_text()
    said = float(re.search(r"^\| content \| ([\d.]+)%", card, re.MULTILINE)[1]) / 100
    model = lvr_jax.open(lvr_jax.TINY_LVR, max_new_tokens=24)
    clean, donor = model.sweep(lvr_jax.scenes(40), "donor").summary()
    assert abs(clean["accuracy"] - said) < 3 * (said * (1 - said) / 40) ** 0.5
    assert donor["accuracy"] < clean["accuracy"] - 0.1 and donor["missing"] == 0
