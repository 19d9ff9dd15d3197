"""The tower, from pixels to vision tokens: patch embedding, window and full attention, merger.

Everything works on dense windows [B, W, S] laid out by the host (layout.py): a window layer is one batched attention
over S = 64 patches, exact and without a gather; a full-attention layer sees all W * S slots of its frame.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.models.attention import Keys, Queries, attention
from lvr_jax.models.layers import Compute, SwiGLU, flat, ones, rms_norm, scan_blocks, stack, weight, zeros
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.qwen2_5_vl.config import VisionConfig
from lvr_jax.models.qwen2_5_vl.rope import rotate, vision_table

# CLIP's pixel statistics, RGB.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


# Every pixel value as the Hugging Face processor makes it, [256, C]: three fp32 roundings, divisions included.
_MEAN, _STD = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
PIXELS = (np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - _MEAN) / _STD


def normalise(patches: jax.Array, channels: int = 3) -> jax.Array:
    """uint8 patches [..., C * n] -> fp32, rescaled and normalised per channel as the Hugging Face processor does.

    Bit for bit, by looking each value up: XLA turns division by a constant into a product and fuses it with the
    subtraction, which changes most values in the last bits (2026-11, jax 0.10.2). A TPU, where scalar look-ups are
    slow, computes and is off by 5e-7 at most.
    """
    x = patches.reshape(*patches.shape[:-1], channels, -1)                               # [..., C, n]
    return jax.lax.platform_dependent(x, tpu=_computed, default=_from_table).reshape(patches.shape)


def _from_table(x: jax.Array) -> jax.Array:
    first = len(PIXELS) * np.arange(x.shape[-2], dtype=np.int32)[:, None]
    return jnp.take(PIXELS.T.reshape(-1), x + first, axis=0)


def _computed(x: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) / 255 - _MEAN[:, None]) / _STD[:, None]


def _project_together(y: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """Queries, keys and values [B, W, S, N, H] of y [B, W, S, D]; kernel [D, 3, N, H], bias [3, N, H]."""
    return tuple(jnp.einsum("BWSD,DCNH->CBWSNH", y, kernel) + bias[:, None, None, None])


def _project_one_by_one(y: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """The same. Of one product XLA for CPUs puts patches last, and what follows reads each of them from afar."""
    rows, shape = flat(y, 3), (*y.shape[:3], *kernel.shape[2:])
    return tuple((jnp.einsum("RD,DNH->RNH", rows, kernel[:, c]) + bias[c]).reshape(shape) for c in range(3))


class VisionBlock(nnx.Module):
    """One layer of the tower: attention within windows or over a whole frame, then SwiGLU."""

    def __init__(self, rngs: nnx.Rngs, c: VisionConfig):
        D, N, H = c.hidden, c.heads, c.head_width
        self.attention_norm = ones(D)
        self.qkv, self.qkv_bias = weight(rngs, D, 3, N, H), zeros(3, N, H)
        self.out, self.out_bias = weight(rngs, N, H, D), zeros(D)
        self.mlp_norm = ones(D)
        self.mlp = SwiGLU(rngs, D, c.intermediate, bias=True)

    def __call__(self, x, full, segment, table, compute: Compute):
        """x [B, W, S, D]; full: scalar bool; segment [B, W, S]; table of [B, W, S, H]."""
        B, W, S, D = x.shape
        y = rms_norm(x, self.attention_norm)
        q, k, v = jax.lax.platform_dependent(
            y, self.qkv[...].astype(x.dtype), self.qkv_bias[...].astype(x.dtype),
            cpu=_project_one_by_one, default=_project_together,
        )  # fmt: skip
        q, k = rotate(q, table), rotate(k, table)

        def attend(rows: int, length: int, kernel: str):
            flat = lambda a: a.reshape(rows, length, *a.shape[3:])  # noqa: E731
            queries = Queries(flat(q), flat(segment))
            y, _ = attention(queries, Keys(flat(k), flat(v), flat(segment)), implementation=kernel)
            return y.reshape(q.shape)

        y = jax.lax.cond(
            full,
            lambda: attend(B, W * S, compute.attention),
            lambda: attend(B * W, S, "xla"),
        )
        x = x + jnp.einsum("BWSNH,NHD->BWSD", y, self.out[...].astype(x.dtype)) + self.out_bias[...].astype(x.dtype)
        return x + self.mlp(rms_norm(x, self.mlp_norm))


class Merger(nnx.Module):
    """Four neighbouring patches -> one token of the language model's width."""

    def __init__(self, rngs: nnx.Rngs, c: VisionConfig):
        E = c.hidden * c.merge**2
        self.norm = ones(c.hidden)
        self.inner, self.inner_bias = weight(rngs, E, E), zeros(E)
        self.out, self.out_bias = weight(rngs, E, c.out_hidden), zeros(c.out_hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        B, E = x.shape[0], self.inner.shape[0]
        x = rms_norm(x, self.norm).reshape(-1, E)                                        # [B * M, 4D]
        x = jnp.einsum("RE,EF->RF", x, self.inner[...].astype(x.dtype)) + self.inner_bias[...].astype(x.dtype)
        x = jax.nn.gelu(x, approximate=False)
        x = jnp.einsum("RF,FD->RD", x, self.out[...].astype(x.dtype)) + self.out_bias[...].astype(x.dtype)
        return x.reshape(B, -1, x.shape[-1])


class VisionTower(nnx.Module):
    """The tower: patch embedding, stacked blocks and merger."""

    def __init__(self, rngs: nnx.Rngs, c: VisionConfig):
        self.config = c
        self.patch_embed = weight(rngs, c.channels, c.temporal_patch, c.patch**2, c.hidden)
        self.blocks = stack(lambda rngs: VisionBlock(rngs, c), c.depth, rngs)
        self.merger = Merger(rngs, c)

    def embed(self, patches: jax.Array) -> jax.Array:
        """[B, W, S, frame width] (a still's one frame) or [..., frames * frame width] -> [B, W, S, D], fp32 or wider.

        uint8 is normalised here; floats are taken as normalised already. fp32 as in LVR's training, which found the
        bf16 convolution to give NaN.
        """
        c = self.config
        whole = patches.dtype == jnp.uint8
        x = normalise(patches, c.channels) if whole else patches.astype(at_least_fp32(patches.dtype))
        kernel = self.patch_embed[...].astype(x.dtype)                                   # [C, frames, 14 * 14, D]
        if x.shape[-1] == c.frame_width:  # both frames of a still are equal: their kernels add up
            kernel = kernel.sum(1, keepdims=True)
        return jnp.einsum("BWSE,ED->BWSD", x, kernel.reshape(-1, c.hidden))

    def __call__(
        self,
        patches: jax.Array,
        segment: jax.Array,
        rotary_ids: jax.Array,
        compute: Compute = Compute(),  # noqa: B008
        taps: Collection[str] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Patches [B, W, S, C] with their layout -> merged tokens [B, M, D], M = W * S / 4, in window order.

        Taps: `vision_states` [1 + depth, B, W, S, D], the embedding and every block's output.
        """
        c = self.config
        x = self.embed(patches).astype(compute.dtype)
        table = vision_table(
            rotary_ids, c.head_width, dtype=at_least_fp32(compute.dtype), unrolled=compute.unroll > 1
        )
        full = jnp.array([i in c.full_attention_layers for i in range(c.depth)])

        def step(block, x, full):
            x = block(x, full, segment, table, compute)
            return x, x if "vision_states" in taps else None

        embedded = x
        x, states = scan_blocks(self.blocks, step, x, full, compute)
        out = {"vision_states": jnp.concatenate([embedded[None], states])} if "vision_states" in taps else {}
        return self.merger(x), out
