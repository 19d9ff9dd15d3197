"""The decoder, from embeddings to hidden states: one block for prefill, teacher forcing and single steps.

The cache is a value: a pass reads any number of earlier `Cache`s, which it never changes, and can return the keys and
values of its own tokens. Prefilling is a pass with no past, a decoding step is a pass of one token; a prompt that many
rollouts share is one `Cache` without the rollouts' axis under `vmap`.
"""

import functools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.attention import Keys, Queries, attention
from lvr_jax.models.chosen_rows import add_where
from lvr_jax.models.layers import Compute, SwiGLU, flat, ones, rms_norm, scan_blocks, stack, weight, zeros
from lvr_jax.models.placement import on_one_device
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.qwen2_5_vl.config import TextConfig
from lvr_jax.models.qwen2_5_vl.rope import mrope_table, rotate
from lvr_jax.models.records import Cache, Override, Tokens


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
        self, x, tokens: Tokens, table, past: Sequence[Keys], compute: Compute, taps: Collection[str], read=None,
        ends=None,
    ):  # fmt: skip
        """x [B, T, D] -> (x, own keys [B, T, K, H], own values, taps).

        read: [B, T], the tokens that go through the MLP, if `ends`: always, or where this scalar is set.
        """
        eps = self.config.norm_eps
        x = tokens.only_flow(x)
        y = rms_norm(x, self.attention_norm, eps)
        q = rotate(self.project(y, self.q, self.q_bias), table)                          # [B, T, N, H]
        k = tokens.only_flow(rotate(self.project(y, self.k, self.k_bias), table))        # [B, T, K, H]
        v = tokens.only_flow(self.project(y, self.v, self.v_bias))
        queries = Queries(q, tokens.segment, tokens.role, tokens.blocked)
        own = Keys(k, v, tokens.segment, tokens.role, causal=True, branches=tokens.branches)
        wanted = "attention" in taps
        y, weights = attention(
            queries, *past, own, implementation="xla" if past or wanted else compute.attention, weights=wanted
        )
        x = x + jnp.einsum("RNH,NHD->RD", flat(y), self.out[...].astype(x.dtype)).reshape(x.shape)
        if read is None or ends is None:
            x = self.through_mlp(x, read)
        else:
            x = jax.lax.cond(ends, lambda: self.through_mlp(x, read), lambda: self.through_mlp(x))
        out = {"attention": weights} if wanted else {}
        if "states" in taps:
            out["states"] = x
        return x, k, v, out

    def through_mlp(self, x: jax.Array, read: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] with the MLP's part added, to the tokens [B, T] that are read alone if told."""
        eps = self.config.norm_eps
        if read is None:
            return x + self.mlp(rms_norm(x, self.mlp_norm, eps))
        graph, mlp = nnx.split(self.mlp)
        work = lambda p, rows: nnx.merge(graph, p[1])(rms_norm(rows, p[0], eps))  # noqa: E731
        return add_where(work, (self.mlp_norm[...], mlp), flat(x), flat(read)).reshape(x.shape)


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
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Embeddings [B, T, D] -> (hidden states after the final norm [B, T, D], own cache if kept, taps).

        override: states that later blocks and later tokens see instead of the pass's own.
        read: [B, T] bool, the tokens whose hidden states are read. On one device the last block's MLP is not computed
        for the others, whose states, the tap's too, are then without meaning.

        Taps: `states` [1 + L, B, T, D], the embeddings and every block's output before the final norm; `attention`
        [L, B, N, T, past + T], weights.
        """
        c = self.config
        x = x.astype(compute.dtype)
        table = mrope_table(
            tokens.positions, c.head_width, c.mrope_section, c.rope_theta, at_least_fp32(compute.dtype),
            unrolled=compute.unroll > 1,
        )  # fmt: skip
        if override is not None:
            x = override.put(x, override.values[0], override.mask[0])
        embedded = x

        if not on_one_device():
            read = None     # rows that are cut over devices would have to be gathered to choose among them
        in_place = read if keep_cache else None

        def step(block, x, layer, read=in_place):
            layer, put, ends = layer
            keys = [Keys(k, v, cache.segment, cache.role) for (k, v), cache in zip(layer, past)]
            x, k, v, out = block(x, tokens, table, keys, compute, taps, read, ends)
            if put is not None:
                x = override.put(x, *put)
                out |= {"states": x} if "states" in out else {}
            return x, ((k, v) if keep_cache else None, out)

        layers = [(cache.k.astype(compute.dtype), cache.v.astype(compute.dtype)) for cache in past]
        # To take the last block out of the loop is to copy the others' parameters, to leave it in is to keep for the
        # backward pass what both ways need.
        ends = jnp.arange(c.layers) == c.layers - 1 if in_place is not None else None
        layers = (layers, None if override is None else (override.values[1:], override.mask[1:]), ends)
        last = functools.partial(step, read=read) if read is not None and not keep_cache else None
        x, (own, out) = scan_blocks(self.blocks, step, x, layers, compute, last)
        if "states" in taps:
            out["states"] = jnp.concatenate([embedded[None], out["states"]])
        hidden = rms_norm(x, self.norm, c.norm_eps)
        role = tokens.role if tokens.role is not None else jnp.zeros_like(tokens.segment)
        return hidden, Cache(*own, tokens.segment, role) if keep_cache else None, out

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V], fp32 or wider. For decoding; training goes through models.cross_entropy."""
        kernel = self.unembedding.astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, kernel, preferred_element_type=at_least_fp32(hidden.dtype))
