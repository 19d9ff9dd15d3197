"""Draws filler tokens between a prompt and its reply, which teach a network to answer at any offset.

A network of a million parameters that always replies right after the prompt learns that one distance, and whatever is
put before its reply (a latent block, say) breaks it. Filler moves the reply and teaches nothing else: it is input
without a loss. Half the examples have newlines; the others have, token by token, cells of their own picture drawn
blindly, the special tokens of latent reasoning, or newlines, so that no kind of content stands for an offset.
"""

import zlib

import numpy as np

from lvr_jax.data.tokenizers import LVR_TOKENS, P_LVR_TOKENS, ChatTokenizer

PLAIN_SHARE = 0.5       # of the examples: newlines only
CELL_SHARE = 0.5        # of the other examples' filler: cells of the picture


def draw_filler(sample_id: str, tokenizer: ChatTokenizer, most: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws 0 to `most` tokens by the sample's id alone: (ids, vision slots or -1). cells: merged tokens to draw."""
    rng = np.random.default_rng(zlib.crc32(sample_id.encode()))
    count = int(rng.integers(most + 1))
    newline = tokenizer.encode("\n")
    plain = rng.random() < PLAIN_SHARE
    ids, slots = np.repeat(newline[:1], count), np.full(count, -1, np.int32)
    if plain:
        return ids, slots
    special = np.array([*newline[:1], *map(tokenizer.id, (*LVR_TOKENS, *P_LVR_TOKENS))], np.int32)
    ids = special[rng.integers(len(special), size=count)]
    if cells:
        slots = np.where(rng.random(count) < CELL_SHARE, rng.integers(cells, size=count), -1).astype(np.int32)
    return ids, slots
