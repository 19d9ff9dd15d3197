"""Counts the arithmetic in a batch, and the share of the hardware's that a step uses.

Counted are the matrix products that the model needs for the tokens that are there: padding, recomputation and the
second pass of a gradient routing earn nothing. Decoder: forward and backward, three times the forward pass; attention
causal, so half of all pairs, within examples. Vision tower and merger: forward only when frozen; window layers within
windows, full layers within images. Unembedding: all tokens, as is usual.
"""

import numpy as np

from lvr_jax.data.packing import Batch
from lvr_jax.models.qwen2_5_vl.config import Config

# Dense bf16 peak per chip as jax.Device.device_kind calls it (vendors' data sheets, 2026-11).
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,     # half a chip
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def decoder_flops(config: Config, tokens: int, pairs: int) -> float:
    """Forward pass over `tokens` of which `pairs` (query, key) see each other."""
    c = config.text
    attention = c.hidden * c.head_width * (2 * c.heads + 2 * c.kv_heads)        # q, out, k, v
    per_token = c.layers * (attention + 3 * c.hidden * c.intermediate) + c.hidden * c.vocab
    return 2.0 * tokens * per_token + 4.0 * pairs * c.layers * c.heads * c.head_width


def vision_flops(config: Config, patches: int, window_pairs: int, image_pairs: int) -> float:
    """Forward pass over `patches`; pairs within windows and within images (frames)."""
    c = config.vision
    full = len([i for i in c.full_attention_layers if i < c.depth])
    per_patch = c.depth * (4 * c.hidden**2 + 3 * c.hidden * c.intermediate) + c.channels * c.patch**2 * c.hidden
    merged = c.hidden * c.merge**2
    merger = patches / c.merge**2 * (merged**2 + merged * c.out_hidden)
    pairs = (c.depth - full) * window_pairs + full * image_pairs
    return 2.0 * (patches * per_patch + merger) + 4.0 * pairs * c.hidden


def _sizes(segment: np.ndarray) -> np.ndarray:
    """Sizes of the segments in each row of [R, n] ids; 0 is padding."""
    ids = segment.reshape(len(segment), -1).astype(np.int64)
    ids = np.where(ids > 0, ids + np.arange(len(ids))[:, None] * (ids.max(initial=0) + 1), 0)
    counts = np.bincount(ids.reshape(-1))
    return counts[1:][counts[1:] > 0]


def batch_flops(config: Config, batch: Batch, *, train_vision: bool = False) -> tuple[float, int]:
    """(model FLOPs of one training step, tokens that are not padding) of a host batch."""
    examples = _sizes(batch["segment"]).astype(np.float64)
    frames = _sizes(batch["window_segment"]).astype(np.float64)
    windows = (batch["window_segment"] > 0).sum(-1).astype(np.float64)
    decoder = decoder_flops(config, examples.sum(), (examples * (examples + 1) / 2).sum())
    vision = vision_flops(config, frames.sum(), (windows**2).sum(), (frames**2).sum())
    return 3 * decoder + (3 if train_vision else 1) * vision, int(examples.sum())


def peak(device_kind: str, count: int) -> float | None:
    """FLOP/s of `count` chips, or None where this kind is not listed (CPUs: no utilisation is claimed)."""
    return PEAK[device_kind] * count if device_kind in PEAK else None
