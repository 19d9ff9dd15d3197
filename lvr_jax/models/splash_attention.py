"""Attention on TPUs by Pallas' splash kernel, which skips blocks of scores that a row's segments leave empty.

A row packs several documents (or images): most blocks of queries and keys hold no pair of one segment. Which ones do is
read off the segment ids on the device, and goes to the kernel as its block mask; inside a block the kernel compares the
ids themselves, so the result is that of the whole mask.

Shapes: q [B, T, N, H]; k, v [B, T, K, H] with N a multiple of K; segment [B, T]. Q, S: blocks of queries and of keys.
"""

import dataclasses

import jax
import jax.numpy as jnp

# What the backward pass needs of an attention besides q, k and v: its result and the logarithms of its sums. A policy
# of remat may keep them by this name (layers.REMAT), and then attention is not computed again.
RESIDUALS = "attention_residuals"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sides of a block, at most: queries and keys of the forward pass and of dq's, of that of dk and dv, and keys whose
    scores are in VMEM at a time.

    Small blocks skip more, large ones leave fewer turns.
    """

    queries: int = 512
    keys: int = 512
    back_queries: int = 512
    back_keys: int = 512
    held: int = 512

    def of(self, T: int) -> "Blocks | None":
        """For rows of T tokens: every side the largest power of two that divides T; None if that is below LANES."""
        sides = {name: min(side, T & -T) for name, side in dataclasses.asdict(self).items()}
        return Blocks(**sides) if min(sides.values()) >= LANES else None


LANES = 128     # of a TPU's vector unit
# By libtpu 0.0.42.1's plan of a step of 3B on v5e-16 (2026-11): a kernel that gives dq along with dk and dv writes a
# partial dq in bf16 for every block of keys, and adding these up takes 2.6 s at 512 keys a block. At 2,048 keys that is
# 0.6 s, and 0.2 s more of pairs are computed. dq's own kernel computes scores again, 0.2 s at the peak; it adds up in
# fp32 and leaves blocks small.
BLOCKS = Blocks()


def split_padding(segment: jax.Array, size: int) -> jax.Array:
    """Segment ids [B, T] with padding (0) in segments of its own, of `size` places at most.

    Results at padding are never used, so padding need not attend to all other padding.
    """
    return jnp.where(segment > 0, segment, 2**30 + jnp.arange(segment.shape[1]) // size)


def visible_blocks(segment: jax.Array, queries: int, keys: int, causal: bool) -> jax.Array:
    """[Q, S] bool of one row: which blocks of so many queries and keys may hold a query and a key that it sees.

    Exact where segments follow one another and padding (0) comes last, as packing lays tokens out. A slot that is empty
    amid an image goes with what is before it. Otherwise true a little too often, never too seldom.
    """
    place = jnp.arange(len(segment))
    before = jax.lax.cummax(jnp.where(segment > 0, place, -1))                           # the last place that is filled
    order = jnp.where(place > before[-1], 2**30 + place, segment[jnp.maximum(before, 0)])
    (q_first, q_last), (k_first, k_last) = (
        (x.min(1), x.max(1)) for x in (order.reshape(-1, queries), order.reshape(-1, keys))
    )
    seen = (q_first[:, None] <= k_last) & (k_first <= q_last[:, None])
    if causal:
        seen &= keys * jnp.arange(len(k_first)) < queries * (1 + jnp.arange(len(q_first)))[:, None]
    return seen


def _next(seen: jax.Array) -> jax.Array:
    """For every block [n] in the order of the kernel's grid: the next one that is seen, itself included, or the first
    one after the last. That is what the kernel fetches while it skips."""
    n = len(seen)
    following = jax.lax.cummin(jnp.where(seen, jnp.arange(n), n), reverse=True)
    return jnp.where(following == n, following[0], following)


def splash_attention(q, k, v, segment, *, causal: bool, interpret: bool = False) -> jax.Array:
    """[B, T, N, H] on one device. Every query must see a key, which its own is."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

    B, T, N, H = q.shape
    K, sides = k.shape[2], BLOCKS.of(T)
    settings = {
        "block_sizes": kernels.BlockSizes(
            block_q=sides.queries, block_kv=sides.keys, block_kv_compute=min(sides.keys, sides.held),
            block_q_dkv=sides.back_queries, block_kv_dkv=sides.back_keys,
            block_kv_dkv_compute=min(sides.back_keys, sides.held), block_q_dq=sides.queries, block_kv_dq=sides.keys,
        ),
        "is_mqa": True, "save_residuals": False, "mask_value": kernels.DEFAULT_MASK_VALUE,
        "attn_logits_soft_cap": None, "residual_checkpoint_name": RESIDUALS,
        "mask_function": _not_later if causal else None, "interpret": interpret,
    }  # fmt: skip

    def mask(seen, following):
        small = jnp.int8 if max(seen.shape) < 128 else jnp.int16                         # scalar memory is scarce
        return MaskInfo(
            data_next=following[None].astype(small), mask_next=None, block_mask=seen[None].astype(jnp.int8),
            partial_mask_blocks=None, q_sequence=jnp.arange(T, dtype=jnp.int32) if causal else None,
        )  # fmt: skip

    def row(q, k, v, segment, ids):
        """q [K, G, T, H]; k, v [K, T, H]."""
        seen = visible_blocks(segment, sides.queries, sides.keys, causal)
        forward = mask(seen, _next(seen.reshape(-1)).reshape(seen.shape) % seen.shape[1])
        seen = visible_blocks(segment, sides.back_queries, sides.back_keys, causal)
        backward = mask(seen, jax.vmap(_next, 1, 1)(seen))
        kernel = kernels.SplashAttentionKernel(forward, forward, backward, **settings)
        return jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, kernels.SegmentIds(q=ids, kv=ids))

    q = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)               # [B, K, G, T, H]
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))                                     # [B, K, T, H]
    out = jax.vmap(row)(q, k, v, segment, split_padding(segment, sides.queries))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _not_later(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The causal mask, as the kernel computes it from places."""
    return queries >= keys
