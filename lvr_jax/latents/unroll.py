"""Runs gradients through latents that the model feeds itself: text in parallel, latents by `lax.scan`.

Rows are aligned by the host so that latents sit at the same static positions in every row (padding may be anywhere):
a row is text, latents, text, and so on. Text parts are one parallel pass each on top of the keys so far; a latents
part feeds the previous state back one position at a time, differentiable through time, each step rematerialised.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lvr_jax.models.interface import Network
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Cache, Tokens


@dataclasses.dataclass(frozen=True)
class Part:
    """Positions [start, stop) of every row: a latent block, or text. The first part of a row is text."""

    start: int
    stop: int
    latents: bool


Parts = tuple[Part, ...]


def cut(tokens: Tokens, start: int | jax.Array, length: int) -> Tokens:
    """The record of `length` positions from `start` on."""

    def along(x: Any, axis: int) -> Any:
        return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, length, axis)

    return Tokens(
        along(tokens.positions, 2), along(tokens.segment, 1), along(tokens.role, 1), tokens.blocked,
        along(tokens.flow, 1),
    )  # fmt: skip


def unroll(
    model: Network, x: jax.Array, tokens: Tokens, parts: Parts, own: jax.Array, compute: Compute
) -> jax.Array:
    """States after the final norm [B, T, D] of rows whose latents are (partly) the model's own.

    x: [B, T, D] embeddings with teacher-forced latents in place; own: [B, T] bool, positions of latents parts that
    are fed the previous state instead (through the latent head, if the checkpoint has one). With `own` false
    everywhere this is the parallel pass.
    """
    if not parts or parts[0].latents:
        raise ValueError("unroll: rows need static parts, text first; align the batch (data.packing.align)")
    past: list[Cache] = []
    states: list[jax.Array] = []
    for part in parts:
        length = part.stop - part.start
        if part.latents:
            hidden, cache = _latents(model, x, tokens, part, own, states[-1][:, -1], past, compute)
        else:
            here = x[:, part.start : part.stop]
            hidden, cache, _ = model.decode(
                here, cut(tokens, part.start, length), past=past, compute=compute, keep_cache=True
            )
        past.append(cache)
        states.append(hidden)
    return jnp.concatenate(states, axis=1)


def _latents(model, x, tokens: Tokens, part: Part, own, previous, past, compute) -> tuple[jax.Array, Cache]:
    text, B, Z = model.config.text, x.shape[0], part.stop - part.start
    blank = jnp.zeros((text.layers, B, Z, text.kv_heads, text.head_width), compute.dtype)
    role = jnp.zeros((B, Z), jnp.int32)
    here = cut(tokens, part.start, Z)
    role = role if here.role is None else here.role

    def step(carry, z):
        previous, k, v = carry
        one = cut(tokens, part.start + z, 1)
        fed_back = previous if model.latent_head is None else model.latent_head(previous)
        take = lambda a: jax.lax.dynamic_index_in_dim(a, part.start + z, 1, keepdims=False)  # noqa: E731
        fed = jnp.where(take(own)[:, None], fed_back.astype(x.dtype), take(x))
        # Keys of this block's later positions are still blank: they belong to no segment.
        so_far = Cache(k, v, jnp.where(jnp.arange(Z) < z, here.segment, 0), role)
        hidden, new, _ = model.decode(fed[:, None], one, past=[*past, so_far], compute=compute, keep_cache=True)
        write = lambda buffer, value: jax.lax.dynamic_update_slice_in_dim(buffer, value, z, 2)  # noqa: E731
        return (hidden[:, 0], write(k, new.k), write(v, new.v)), hidden[:, 0]

    (_, k, v), hidden = jax.lax.scan(jax.checkpoint(step), (previous, blank, blank), jnp.arange(Z))
    return jnp.moveaxis(hidden, 0, 1), Cache(k, v, here.segment, role)
