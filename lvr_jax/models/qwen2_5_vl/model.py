"""Qwen2.5-VL as a whole: tower and decoder joined by one gather, and the heads of latent-reasoning checkpoints.

Four verbs: `encode` pixels, `embed` tokens, `decode` embeddings, and the decoder's `logits`.
"""

from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.layers import Compute, SwiGLU, ones, weight, zeros
from lvr_jax.models.placement import embedding_lookup
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.qwen2_5_vl.text import Decoder
from lvr_jax.models.qwen2_5_vl.vision import VisionTower
from lvr_jax.models.records import Cache, Images, Override, Tokens


class SimpleHead(nnx.Module):
    """LayerNorm, Linear, exact GELU, Linear: `lvr_head_type: simple`."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        self.norm, self.norm_bias = ones(width), zeros(width)
        self.inner, self.inner_bias = weight(rngs, width, width), zeros(width)
        self.out, self.out_bias = weight(rngs, width, width), zeros(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(at_least_fp32(x.dtype))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
        y = (y * self.norm[...] + self.norm_bias[...]).astype(x.dtype)
        y = jnp.einsum("...D,DE->...E", y, self.inner[...].astype(x.dtype)) + self.inner_bias[...].astype(x.dtype)
        y = jax.nn.gelu(y, approximate=False)
        return jnp.einsum("...D,DE->...E", y, self.out[...].astype(x.dtype)) + self.out_bias[...].astype(x.dtype)


def _latent_head(rngs: nnx.Rngs, config: Config) -> SimpleHead | SwiGLU | None:
    D = config.text.hidden
    if config.latent_head == "simple":
        return SimpleHead(rngs, D)
    # SwiGLU's SiLU, as in the released code.
    return SwiGLU(rngs, D, config.text.intermediate, bias=True) if config.latent_head == "glu" else None


class Qwen2_5_VL(nnx.Module):
    """Parameters live in `vision`, `text` and, for checkpoints that have them, `latent_head` and `latent_end`."""

    def __init__(self, rngs: nnx.Rngs, config: Config):
        self.config = config
        self.vision = VisionTower(rngs, config.vision)
        self.text = Decoder(rngs, config.text)
        self.latent_head = _latent_head(rngs, config)
        self.latent_end = zeros(config.text.hidden) if config.latent_end_embedding else None

    def encode(
        self, images: Images, compute: Compute = Compute(), taps: Collection[str] = ()  # noqa: B008
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Merged vision tokens [B, M, D] in window order, and taps."""
        return self.vision(images.patches, images.segment, images.rotary_ids, compute, taps)

    def embed(
        self, tokens: jax.Array, vision_slot: jax.Array | None = None, merged: jax.Array | None = None
    ) -> jax.Array:
        """Token ids [B, T] -> embeddings [B, T, D]; where vision_slot >= 0, the merged token of that index instead.

        Image placeholders and teacher-forced latents are the same gather.
        """
        x = embedding_lookup(jnp.take(self.text.embed[...], tokens, axis=0))                    # [B, T, D]
        if vision_slot is None or merged is None:
            return x
        seen = jnp.take_along_axis(merged, jnp.maximum(vision_slot, 0)[..., None], axis=1)
        return jnp.where((vision_slot >= 0)[..., None], seen.astype(x.dtype), x)

    def decode(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        past: Sequence[Cache] = (),
        compute: Compute = Compute(),  # noqa: B008
        taps: Collection[str] = (),
        keep_cache: bool = False,
        override: Override | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """See `Decoder.__call__`."""
        return self.text(
            x, tokens, past=past, compute=compute, taps=taps, keep_cache=keep_cache, override=override, read=read
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Decoder.logits`."""
        return self.text.logits(hidden)

    @property
    def unembedding(self) -> jax.Array:
        """The rows [V, D] that hidden states are compared with."""
        return self.text.unembedding
