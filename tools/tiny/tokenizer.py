"""Makes the tiny checkpoint's tokenizer: byte-level BPE over the words of the scenes, Qwen's special tokens.

Cut as Qwen2.5 cuts text, so any text can be written; what the scenes say is a token a word. Special tokens stand in
Qwen2.5's order, those of latent reasoning in the official one.
"""

import itertools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lvr_jax.data.digit_pictures import COLOUR_NAMES
from lvr_jax.data.digit_scenes import DigitSearch
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


def make_tokenizer() -> ChatTokenizer:
    """Makes the tiny checkpoint's tokenizer."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        _texts(), trainers.BpeTrainer(vocab_size=ORDINARY, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return add_latent_tokens(ChatTokenizer(backend, None, "the tiny checkpoint"))


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
