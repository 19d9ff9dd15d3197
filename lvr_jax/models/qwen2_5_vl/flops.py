"""Counts the matrix products of a forward pass of Qwen2.5-VL, in FLOPs."""

from lvr_jax.models.qwen2_5_vl.config import Config


def decoder_flops(config: Config, tokens: float, pairs: float) -> float:
    """Forward pass over `tokens` of which `pairs` (query, key) see each other."""
    c = config.text
    attention = c.hidden * c.head_width * (2 * c.heads + 2 * c.kv_heads)        # q, out, k, v
    per_token = c.layers * (attention + 3 * c.hidden * c.intermediate) + c.hidden * c.vocab
    return 2.0 * tokens * per_token + 4.0 * pairs * c.layers * c.heads * c.head_width


def vision_flops(config: Config, patches: float, window_pairs: float, image_pairs: float) -> float:
    """Forward pass over `patches`; pairs within windows and within images (frames)."""
    c = config.vision
    full = len([i for i in c.full_attention_layers if i < c.depth])
    per_patch = c.depth * (4 * c.hidden**2 + 3 * c.hidden * c.intermediate) + c.channels * c.patch**2 * c.hidden
    merged = c.hidden * c.merge**2
    merger = patches / c.merge**2 * (merged**2 + merged * c.out_hidden)
    pairs = (c.depth - full) * window_pairs + full * image_pairs
    return 2.0 * (patches * per_patch + merger) + 4.0 * pairs * c.hidden
