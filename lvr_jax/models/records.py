"""Records that every network takes and returns: images in windows, token metadata, caches and overridden states."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Images and videos of each row in windows: patches [B, W, S, C], segment [B, W, S], rotary_ids [B, W, S, 2]."""

    patches: jax.Array
    segment: jax.Array
    rotary_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of earlier tokens: k, v [L, B, S, K, H] (rotated), segment [B, S] (0 unused), role [B, S]."""

    k: jax.Array
    v: jax.Array
    segment: jax.Array
    role: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the decoder has to know of each token besides its embedding.

    positions: [B, 3, T] M-RoPE ids
    segment:   [B, T], 0 for padding; tokens see their own segment only, so packed examples do not meet
    role:      [B, T] or None, with blocked [R, R] or [B, R, R]: attention routing (models.attention.Queries)
    branches:  (shared, count): the first `shared` tokens of a row are seen by all, the rest are `count` branches of one
               size that do not see each other; for `Keys`. None: a row is one sequence
    flow:      [B, T] bool or None: where False, nothing is back-propagated through what enters a block at this token,
               neither the residual stream nor keys and values, at any layer
    """

    positions: jax.Array
    segment: jax.Array
    role: jax.Array | None = None
    blocked: jax.Array | None = None
    flow: jax.Array | None = None
    branches: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    def only_flow(self, x: jax.Array) -> jax.Array:
        """x [B, T, ...] with the gradient stopped where `flow` is False."""
        if self.flow is None:
            return x
        return jnp.where(self.flow.reshape(*self.flow.shape, *[1] * (x.ndim - 2)), x, jax.lax.stop_gradient(x))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Override:
    """States that take the place of a pass's own: values [1 + L, B, T, D] where mask [1 + L, B, T] is set.

    Entry 0 is what enters the first block, entry l the output of block l, as the tap `states` numbers them.
    """

    values: jax.Array
    mask: jax.Array

    @staticmethod
    def put(x: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.where(mask[..., None], values.astype(x.dtype), x)
