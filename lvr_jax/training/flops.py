"""Counts the arithmetic in a batch, and the share of the hardware's that a step uses.

Counted are the matrix products that the model needs for the tokens that are there: padding, recomputation and the
second pass of a gradient routing earn nothing. Decoder: forward and backward, three times the forward pass; attention
causal, so half of all pairs, within examples; a branch of them sees itself and what is shared. Vision tower and merger:
forward only when frozen; window layers within windows, full layers within images. Unembedding: all tokens, as is usual.
"""

import numpy as np

from lvr_jax.data.packing import Batch
from lvr_jax.models.families import family_of
from lvr_jax.models.interface import Config

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


def _sizes(segment: np.ndarray) -> np.ndarray:
    """Sizes of the segments in each row of [R, n] ids; 0 is padding."""
    ids = segment.reshape(len(segment), -1).astype(np.int64)
    ids = np.where(ids > 0, ids + np.arange(len(ids))[:, None] * (ids.max(initial=0) + 1), 0)
    counts = np.bincount(ids.reshape(-1))
    return counts[1:][counts[1:] > 0]


def _pairs(batch: Batch) -> float:
    """Pairs of a query and a key that it sees, of one layer of the decoder."""
    examples = _sizes(batch["segment"]).astype(np.float64)
    if "branch" not in batch:
        return (examples * (examples + 1) / 2).sum()
    branch = np.where(batch["segment"] > 0, batch["branch"], -1)
    sizes = (branch[:, None] == np.arange(branch.max() + 1)[:, None]).sum(-1).astype(np.float64)     # [B, 1 + count]
    return (sizes * (sizes + 1) / 2).sum() + (sizes[:, :1] * sizes[:, 1:]).sum()


def batch_flops(config: Config, batch: Batch, *, train_vision: bool = False) -> tuple[float, int]:
    """(model FLOPs of one training step, tokens that are not padding) of a host batch."""
    examples = _sizes(batch["segment"]).astype(np.float64)
    frames = _sizes(batch["window_segment"]).astype(np.float64)
    windows = (batch["window_segment"] > 0).sum(-1).astype(np.float64)
    family = family_of(config)
    decoder = family.decoder_flops(config, examples.sum(), _pairs(batch))
    vision = family.vision_flops(config, frames.sum(), (windows**2).sum(), (frames**2).sum())
    return 3 * decoder + (3 if train_vision else 1) * vision, int(examples.sum())


def peak(device_kind: str, count: int) -> float | None:
    """FLOP/s of `count` chips, or None where this kind is not listed (CPUs: no utilisation is claimed)."""
    return PEAK[device_kind] * count if device_kind in PEAK else None
