"""The decoder, from embeddings to hidden states: one block for prefill, teacher forcing and single steps.

The cache is a value: a pass reads any number of earlier `Cache`s, which it never changes, and can return the keys and
values of its own tokens. Prefilling is a pass with no past, a decoding step is a pass of one token; a prompt that many
rollouts share is one `Cache` without the rollouts' axis under `vmap`.
"""

import dataclasses
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.attention import Keys, Queries, attention
from lvr_jax.models.layers import Compute, SwiGLU, flat, ones, rms_norm, scan_blocks, stack, weight, zeros
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.qwen2_5_vl.config import TextConfig
from lvr_jax.models.qwen2_5_vl.rope import mrope_table, rotate
from lvr_jax.models.records import Cache, Override, Tokens

# A segment that no token has.
NOBODYS = -1


def take_token(x: jax.Array, at: jax.Array) -> jax.Array:
    """x [B, T, ...] -> [B, 1, ...], token at [B] of each row."""
    return jnp.take_along_axis(x, at.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


class DecoderBlock(nnx.Module):
    """One layer of the decoder: grouped-query attention with M-RoPE, then SwiGLU."""

    def __init__(self, rngs: nnx.Rngs, c: TextConfig):
        D, N, K, H = c.hidden, c.heads, c.kv_heads, c.head_width
        self.config = c
        self.attention_norm = ones(D)
        self.q, self.q_bias = weight(rngs, D, N, H), zeros(N, H)
        self.k, self.k_bias = weight(rngs, D, K, H), zeros(K, H)
        self.v, self.v_bias = weight(rngs, D, K, H), zeros(K, H)
        self.out = weight(rngs, N, H, D)
        self.mlp_norm = ones(D)
        self.mlp = SwiGLU(rngs, D, c.intermediate, bias=False)

    def project(self, x, kernel, bias) -> jax.Array:
        y = jnp.einsum("RD,DNH->RNH", flat(x), kernel[...].astype(x.dtype)) + bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:2], *y.shape[1:])                                     # [B, T, N, H]

    def __call__(
        self, x, tokens: Tokens, table, past: Sequence[Keys], compute: Compute, taps: Collection[str],
        only: tuple[jax.Array, jax.Array] | None = None,
    ):  # fmt: skip
        """x [B, T, D] -> (x, own keys [B, T, K, H], own values, taps).

        only: (whether to, token [B]): of x, computes just this token of each row; the others stay as they are.
        """
        x = tokens.only_flow(x)
        y = rms_norm(x, self.attention_norm, self.config.norm_eps)
        k = tokens.only_flow(rotate(self.project(y, self.k, self.k_bias), table))        # [B, T, K, H]
        v = tokens.only_flow(self.project(y, self.v, self.v_bias))
        own = Keys(k, v, tokens.segment, tokens.role, causal=True, branches=tokens.branches)
        wanted = "attention" in taps
        kernel = "xla" if past or wanted else compute.attention
        if only is None:
            x, weights = self.mix(x, y, table, tokens, (*past, own), kernel, wanted)
        else:
            x, weights = jax.lax.cond(
                only[0],
                lambda: self.mix_one(only[1], x, y, table, tokens, past, own),
                lambda: self.mix(x, y, table, tokens, (*past, own), kernel)[0],
            ), None
        out = {"attention": weights} if wanted else {}
        if "states" in taps:
            out["states"] = x
        return x, k, v, out

    def mix(self, x, y, table, tokens: Tokens, keys: Sequence[Keys], kernel: str, weights: bool = False):
        """x [B, T, D], and normed y -> (x after attention over `keys` and the MLP, attention weights or None)."""
        q = rotate(self.project(y, self.q, self.q_bias), table)                          # [B, T, N, H]
        queries = Queries(q, tokens.segment, tokens.role, tokens.blocked)
        y, weights = attention(queries, *keys, implementation=kernel, weights=weights)
        x = x + jnp.einsum("RNH,NHD->RD", flat(y), self.out[...].astype(x.dtype)).reshape(x.shape)
        return x + self.mlp(rms_norm(x, self.mlp_norm, self.config.norm_eps)), weights

    def mix_one(self, at, x, y, table, tokens: Tokens, past: Sequence[Keys], own: Keys):
        """As `mix`, of token at [B] of each row alone."""
        here = jnp.arange(x.shape[1]) == at[:, None]                                     # [B, T]
        up_to = jnp.where(jnp.arange(x.shape[1]) <= at[:, None], own.segment, NOBODYS)
        x1, y1, *table1 = (take_token(a, at) for a in (x, y, *table))
        segment, role = (None if a is None else take_token(a, at) for a in (tokens.segment, tokens.role))
        one = dataclasses.replace(tokens, segment=segment, role=role)
        own = dataclasses.replace(own, segment=up_to, causal=False)
        return jnp.where(here[..., None], self.mix(x1, y1, table1, one, (*past, own), "xla")[0], x)


class Decoder(nnx.Module):
    """The decoder: token embedding, stacked blocks, final norm and head."""

    def __init__(self, rngs: nnx.Rngs, c: TextConfig):
        self.config = c
        self.embed = weight(rngs, c.vocab, c.hidden)
        self.blocks = stack(lambda rngs: DecoderBlock(rngs, c), c.layers, rngs)
        self.norm = ones(c.hidden)
        if not c.tied:
            self.head = weight(rngs, c.vocab, c.hidden)

    @property
    def unembedding(self) -> jax.Array:
        """[V, D]"""
        return (self.embed if self.config.tied else self.head)[...]

    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        past: Sequence[Cache] = (),
        compute: Compute = Compute(),  # noqa: B008
        taps: Collection[str] = (),
        keep_cache: bool = False,
        override: Override | None = None,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Embeddings [B, T, D] -> (hidden states after the final norm [B, T, D], own cache if kept, taps).

        override: states that later blocks and later tokens see instead of the pass's own. last: [B], the one token of
        each row whose hidden state is wanted, [B, 1, D]: the last block computes no other. Without taps and override.

        Taps: `states` [1 + L, B, T, D], the embeddings and every block's output before the final norm; `attention`
        [L, B, N, T, past + T], weights.
        """
        c = self.config
        x = x.astype(compute.dtype)
        table = mrope_table(tokens.positions, c.head_width, c.mrope_section, c.rope_theta, at_least_fp32(compute.dtype))
        if override is not None:
            x = override.put(x, override.values[0], override.mask[0])
        embedded = x

        def step(block, x, layer):
            layer, put, ends = layer
            keys = [Keys(k, v, cache.segment, cache.role) for (k, v), cache in zip(layer, past)]
            x, k, v, out = block(x, tokens, table, keys, compute, taps, None if last is None else (ends, last))
            if put is not None:
                x = override.put(x, *put)
                out |= {"states": x} if "states" in out else {}
            return x, ((k, v) if keep_cache else None, out)

        layers = [(cache.k.astype(compute.dtype), cache.v.astype(compute.dtype)) for cache in past]
        ends = None if last is None else jnp.arange(c.layers) == c.layers - 1
        layers = (layers, None if override is None else (override.values[1:], override.mask[1:]), ends)
        x, (own, out) = scan_blocks(self.blocks, step, x, layers, compute)
        if "states" in taps:
            out["states"] = jnp.concatenate([embedded[None], out["states"]])
        hidden = rms_norm(x if last is None else take_token(x, last), self.norm, c.norm_eps)
        role = tokens.role if tokens.role is not None else jnp.zeros_like(tokens.segment)
        return hidden, Cache(*own, tokens.segment, role) if keep_cache else None, out

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V], fp32 or wider. For decoding; training goes through models.cross_entropy."""
        kernel = self.unembedding.astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, kernel, preferred_element_type=at_least_fp32(hidden.dtype))
