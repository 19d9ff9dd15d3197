"""Fast attention on a CPU: head by head and block by block of queries, with scores that stay in the cache.

Nothing of size [T, S] outlives its block: the backward pass computes a block's scores again from q, k and the
logarithm of each query's sum. Keys after a causal block are skipped, not masked, and a block in which every query sees
every key has no mask. Rows and heads go one after the other, which is right for a processor of a few cores, where XLA
computes a product with a batch axis at half the speed of one without (2026-11, jax 0.10.2), and wrong for an
accelerator.

Shapes inside, of one key/value head of one row: q [G, T, H], scaled; k, v [S, H]; mask [T, S]; of a block, t queries; R
is G * t.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lvr_jax.models.precision import at_least_fp32

# Most queries of a block (measured at 160 to 4,480 tokens, 2026-11); those of a causal row are a piece of the program
# each, so that there are at most PARTS of them.
BLOCK, CAUSAL_BLOCK, PARTS = 288, 144, 8
# Heads of so few queries are too small to go one by one.
SMALL = 128


def blockwise_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, causal: bool) -> jax.Array:
    """q [B, T, N, H]; k, v [B, S, K, H]; mask [B, T, S] bool -> [B, T, N, H], zeros for a query that sees nothing.

    causal: the mask lets no query see later keys; those are not looked at.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)               # [B, K, G, T, H]
    out = _attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask, causal)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def scores_held(q: jax.Array, k: jax.Array, causal: bool) -> int:
    """Scores of the largest block of a head."""
    T, S = q.shape[1], k.shape[1]
    return q.shape[2] // k.shape[2] * _size(T, causal) * S


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask, causal):
    return _forward(q, k, v, mask, causal)[0]


def _forward(q, k, v, mask, causal):
    out, log_sum = _by_head(functools.partial(_head, causal=causal), mask, q, k, v)
    return out, (q, k, v, mask, out, log_sum)


def _backward(causal, kept, gradient):
    q, k, v, mask, out, log_sum = kept
    return *_by_head(functools.partial(_head_gradient, causal=causal), mask, q, k, v, out, log_sum, gradient), None


def _by_head(work, mask, *arrays):
    """work(mask [T, S], whether each query sees any key and every key [T], array of a head ...) for every row and head;
    mask [B, T, S], arrays [B, K, ...]."""
    together = mask.shape[1] <= SMALL

    def of_row(row):
        mask = row[0]
        of_head = functools.partial(work, mask, mask.any(-1), mask.all(-1))
        return jax.vmap(of_head)(*row[1:]) if together else jax.lax.map(lambda head: of_head(*head), row[1:])

    return jax.lax.map(of_row, (mask, *arrays))


_attend.defvjp(_forward, _backward)


def _size(T: int, causal: bool) -> int:
    """Queries of a block of a row of T."""
    return math.ceil(T / (min(math.ceil(T / CAUSAL_BLOCK), PARTS) if causal else math.ceil(T / BLOCK)))


def _over_blocks(body: Callable, carry: Any, by_query: tuple, arrays: tuple, causal: bool) -> tuple[Any, Any]:
    """Runs body(carry, (x [t, ...] of each of by_query), arrays [G, t, ...], keys) -> (carry, results [G, t, ...]) over
    blocks of queries, `keys` the number of those that may be seen. Returns the last carry and the results [G, T, ...].

    by_query: [T, ...], the mask first. Blocks of causal rows differ in size; others are one piece of program.
    """
    T, S = by_query[0].shape
    size = _size(T, causal)
    if causal or size == T:
        results = []
        for a in range(0, T, size):
            t = slice(a, min(a + size, T))
            carry, result = body(carry, [x[t] for x in by_query], [x[:, t] for x in arrays], min(t.stop, S) if causal
                                 else S)  # fmt: skip
            results.append(result)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *results)
    count = math.ceil(T / size)

    def cut(x, axis):       # what fills the last block sees nothing
        x = jnp.pad(x, [(0, count * size - T if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    parts = [cut(x, 0) for x in by_query], [cut(x, 1) for x in arrays]
    carry, results = jax.lax.scan(lambda carry, part: body(carry, *part, S), carry, parts)
    joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :T]  # noqa: E731
    return carry, jax.tree.map(joined, results)


def _scores(q, k, mask):
    """Scores of a block [G, t, S]; mask [t, S or more] or None."""
    G, T, H = q.shape
    type_ = at_least_fp32(q.dtype)
    scores = jnp.einsum("RH,SH->RS", q.reshape(G * T, H), k, preferred_element_type=type_).reshape(G, T, -1)
    return scores if mask is None else jnp.where(mask[:, : len(k)], scores, jnp.finfo(type_).min)


def _with_or_without(work: Callable, mask, every, causal: bool):
    """work(mask), or work(None) for a block where every query sees every key."""
    return work(mask) if causal else jax.lax.cond(every.all(), lambda: work(None), lambda: work(mask))


def _head(mask, sees, every, q, k, v, causal):
    """Result [G, T, H], and the logarithm of every query's sum [G, T, 1]."""

    def block(_, by_query, arrays, keys):
        (mask, sees, every), (q,) = by_query, arrays

        def work(mask):
            scores = _scores(q, k[:keys], mask)
            largest = scores.max(-1, keepdims=True)
            shares = jnp.exp(scores - largest)
            total = shares.sum(-1, keepdims=True)
            out = jnp.einsum("RS,SH->RH", shares.reshape(-1, keys).astype(v.dtype), v[:keys]).reshape(q.shape) / total
            return jnp.where(sees[:, None], out, 0).astype(q.dtype), largest + jnp.log(total)

        return None, _with_or_without(work, mask, every, causal)

    return _over_blocks(block, None, (mask, sees, every), (q,), causal)[1]


def _head_gradient(mask, sees, every, q, k, v, out, log_sum, gradient, causal):
    """In q, k and v."""
    type_ = at_least_fp32(q.dtype)
    # A query that sees nothing has equal shares in what is hidden, and gives it no gradient.
    gradient = jnp.where(sees[:, None], gradient, 0)

    def block(carry, by_query, arrays, keys):
        (mask, _, every), (q, out, log_sum, gradient) = by_query, arrays
        own_q, own_gradient = (x.reshape(-1, x.shape[-1]) for x in (q, gradient))                # [R, H]

        def work(mask):
            shares = jnp.exp(_scores(q, k[:keys], mask) - log_sum).reshape(-1, keys)
            inner = jnp.sum((gradient * out).astype(type_), -1).reshape(-1, 1)
            d_scores = jnp.einsum("RH,SH->RS", own_gradient, v[:keys], preferred_element_type=type_) - inner
            d_scores = (d_scores * shares).astype(q.dtype)
            dq = jnp.einsum("RS,SH->RH", d_scores, k[:keys]).reshape(q.shape)
            dk = jnp.einsum("RS,RH->SH", d_scores, own_q)
            return dq, dk, jnp.einsum("RS,RH->SH", shares.astype(q.dtype), own_gradient)

        dq, *parts = _with_or_without(work, mask, every, causal)
        return tuple(total.at[:keys].add(part) for total, part in zip(carry, parts)), dq

    blank = tuple(jnp.zeros(x.shape, type_) for x in (k, v))
    (dk, dv), dq = _over_blocks(block, blank, (mask, sees, every), (q, out, log_sum, gradient), causal)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)
