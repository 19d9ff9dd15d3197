"""Makes the tiny checkpoint's tokenizer: byte-level BPE over the words of the scenes, Qwen's special tokens.

Cut as Qwen2.5 cuts text, so any text can be written; what the scenes say is a token a word. Special tokens stand in
Qwen2.5's order, those of latent reasoning in the official one.
"""

import itertools
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lvr_jax.data.digit_pictures import COLOUR_NAMES
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.rotation_scenes import ORDINALS, RotationAnalogies
from lvr_jax.data.tokenizers import ChatTokenizer, add_latent_tokens

# Text is cut here first, in this order: contractions, words with what precedes them, single digits, the rest.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ORDINARY = 380          # 256 bytes and the most frequent merges; the first special token's id
ROTATION_ORDINARY = 470


def make_tokenizer() -> ChatTokenizer:
    """Makes the tiny checkpoint's tokenizer."""
    return _trained(_texts(), ORDINARY, "the tiny checkpoint")


def make_rotation_tokenizer() -> ChatTokenizer:
    """Makes that of the rotation base: the same, with the words of rotation analogies as tokens too."""
    return _trained(itertools.chain(_texts(), _rotation_texts()), ROTATION_ORDINARY, "the rotation base")


def _trained(texts: Iterable[str], ordinary: int, name: str) -> ChatTokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=ordinary, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return add_latent_tokens(ChatTokenizer(backend, None, name))


def _texts():
    """Conversations as training lays them out, answers as they end a reply, and words as they start one."""
    attributes = ("colour", "digit")
    for kinds, options, count in ((attributes, 4, 600), (attributes, 0, 200), (("position",), 2, 200)):
        scenes = DigitSearch(count, kinds=kinds, options=options)
        for sample in map(scenes.__getitem__, range(count)):
            yield f"system\nYou are a helpful assistant.\nuser\n{sample.question}\nassistant\n{sample.answer}"
            # Every letter, so that each is one token: margins are read between single tokens.
            yield from (f" <answer> {letter} </answer>\n" for letter in "ABCD")
    for word, _ in itertools.product(COLOUR_NAMES, range(200)):
        yield f"{word} {word}"


def _rotation_texts() -> Iterator[str]:
    """The same of rotation analogies, as they are asked, with the turn said, and of the turn alone."""
    for options in ({}, {"state_rotation": True}, {"asks": "turn"}):
        scenes = RotationAnalogies(300, **options)
        for sample in map(scenes.__getitem__, range(300)):
            yield f"system\nYou are a helpful assistant.\nuser\n{sample.question}\nassistant\n{sample.answer}"
    for word, _ in itertools.product(ORDINALS, range(300)):
        yield f"{word} {word}"
        yield f"{word} <answer>"
