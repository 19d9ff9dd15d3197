"""Caches prefilled prompts on the devices, so that every stage of an audit shares one prefill an item.

What was read in one set of batches serves others: rows are gathered from the batches that hold them. Nothing depends
on what is held but the time, and, where rows come from batches of another size, the last bit of numbers.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.latents.rollout import Prefix

# What every program that reads prompts returns, so that it is one program, whichever stage comes first.
TAPS = ("hidden", "merged")


@dataclasses.dataclass
class Held:
    """Batches by their items' names, each a prefix and its merged vision tokens [B, M, D], up to `limit` bytes (of all
    devices together)."""

    limit: float = 0
    batches: dict[tuple[str, ...], tuple[Prefix, jax.Array]] = dataclasses.field(default_factory=dict)
    size: float = 0
    _places: dict[str, tuple[tuple[str, ...], int]] = dataclasses.field(default_factory=dict)

    def keep(self, ids: tuple[str, ...], prefix: Prefix, merged: jax.Array) -> None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((prefix, merged)))
        if ids not in self.batches and self.size + size <= self.limit:
            self.batches[ids] = prefix, merged
            self.size += size
            self._places |= {name: (ids, row) for row, name in enumerate(ids)}

    def read(self, ids: tuple[str, ...], rows: int) -> tuple[Prefix, jax.Array] | None:
        """The prefix of these items and their merged tokens, filled up to `rows` with the first; None unless all are
        held."""
        if ids in self.batches and self.batches[ids][1].shape[0] == rows:
            return self.batches[ids]
        if any(name not in self._places for name in ids):
            return None
        blocked = self.batches[self._places[ids[0]][0]][0].blocked
        prefix, merged = self._gathered(ids, rows, lambda prefix, merged: (
            _longer(dataclasses.replace(prefix, blocked=None), self._longest(lambda p, _: p.cache.segment)),
            _padded(merged, 1, self._longest(lambda _, m: m)),
        ))  # fmt: skip
        return dataclasses.replace(prefix, blocked=blocked), merged

    def merged(self, ids: tuple[str, ...], rows: int) -> jax.Array | None:
        """Merged vision tokens [B, M, D] alone."""
        if any(name not in self._places for name in ids):
            return None
        return self._gathered(ids, rows, lambda _, merged: _padded(merged, 1, self._longest(lambda _, m: m)))

    def _longest(self, of) -> int:
        """The length that gathered caches are padded to, so that one compiled program serves all."""
        return max(of(*read).shape[1] for read in self.batches.values())

    def _gathered(self, ids: Sequence[str], rows: int, part):
        places = [self._places[name] for name in [*ids, *[ids[0]] * (rows - len(ids))]]
        at = np.array([row for _, row in places], np.int32)
        found = None
        for batch in dict.fromkeys(batch for batch, _ in places):
            here = np.array([each == batch for each, _ in places])
            source = part(*self.batches[batch])
            found = _taken(source, at) if found is None else _put(found, source, at, here)
        return found


def _axis(leaf) -> int:
    """The axis of the rows: the second one of keys and values [L, B, T, K, H], else the first."""
    return 1 if leaf.ndim == 5 else 0


@jax.jit
def _taken(source, at):
    return jax.tree.map(lambda x: jnp.take(x, at, _axis(x), mode="clip"), source)


@jax.jit
def _put(into, source, at, here):
    """`into` with rows `at` [B] of `source` in the places that are `here` [B]."""

    def one(old, new):
        flags = here.reshape(*[1] * _axis(old), -1, *[1] * (old.ndim - _axis(old) - 1))
        return jnp.where(flags, new, old)

    return jax.tree.map(one, into, _taken(source, at))


def _longer(prefix: Prefix, tokens: int) -> Prefix:
    """The same prefix with a longer cache, whose new positions are unused."""
    cache = prefix.cache
    return dataclasses.replace(prefix, cache=dataclasses.replace(
        cache, k=_padded(cache.k, 2, tokens), v=_padded(cache.v, 2, tokens),
        segment=_padded(cache.segment, 1, tokens), role=_padded(cache.role, 1, tokens),
    ))  # fmt: skip


def _padded(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Zeros at the end of an axis up to `size`."""
    if x.shape[axis] == size:
        return x
    return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])
