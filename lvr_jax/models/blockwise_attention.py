"""Fast attention on a CPU: head by head and block by block of queries, with scores that stay in the cache.

Nothing of size [T, S] outlives its block: the backward pass computes a block's scores again from q, k and the
logarithm of each query's sum. Keys after a causal block are skipped, not masked. Rows and heads go one after the other,
which is right for a processor of a few cores, where XLA computes a product with a batch axis at half the speed of one
without (2026-11, jax 0.10.2), and wrong for an accelerator.

Shapes inside, of one key/value head of one row: q [G, T, H], scaled; k, v [S, H]; mask [T, S]; R is G * (queries of a
block).
"""

import functools

import jax
import jax.numpy as jnp

from lvr_jax.models.precision import at_least_fp32

# A row is cut into PARTS blocks, none of fewer than MIN_QUERIES queries (measured at 448 to 1,536 tokens, 2026-11).
PARTS, MIN_QUERIES = 4, 128


def blockwise_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, causal: bool) -> jax.Array:
    """q [B, T, N, H]; k, v [B, S, K, H]; mask [B, T, S] bool -> [B, T, N, H], zeros for a query that sees nothing.

    causal: the mask lets no query see later keys; those are not looked at.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)               # [B, K, G, T, H]
    out = _attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask, causal)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


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
    """work(mask [T, S], array of a head ...) for every row and head; mask [B, T, S], arrays [B, K, ...].

    Heads of a single block are too small to go one by one."""
    together = mask.shape[1] <= MIN_QUERIES

    def of_row(row):
        of_head = functools.partial(work, row[0])
        return jax.vmap(of_head)(*row[1:]) if together else jax.lax.map(lambda head: of_head(*head), row[1:])

    return jax.lax.map(of_row, (mask, *arrays))


_attend.defvjp(_forward, _backward)


def scores_held(q: jax.Array, k: jax.Array) -> int:
    """Scores of the largest block of a head."""
    T, S = q.shape[1], k.shape[1]
    return q.shape[2] // k.shape[2] * max(t.stop - t.start for t, _ in _blocks(T, S, False)) * S


def _blocks(T: int, S: int, causal: bool) -> list[tuple[slice, int]]:
    """Queries of each block, and how many of the first keys they may see."""
    size = max(-(-T // PARTS), MIN_QUERIES)
    return [(slice(a, min(a + size, T)), min(a + size, S) if causal else S) for a in range(0, T, size)]


def _scores(q, k, mask):
    """Masked scores of a block, [G, T, S]."""
    G, T, H = q.shape
    type_ = at_least_fp32(q.dtype)
    scores = jnp.einsum("RH,SH->RS", q.reshape(G * T, H), k, preferred_element_type=type_)
    return jnp.where(mask, scores.reshape(G, T, -1), jnp.finfo(type_).min)


def _head(mask, q, k, v, causal):
    """Result [G, T, H], and the logarithm of every query's sum [G, T, 1]."""
    parts = []
    for t, S in _blocks(q.shape[1], len(k), causal):
        scores = _scores(q[:, t], k[:S], mask[t, :S])
        largest = scores.max(-1, keepdims=True)
        shares = jnp.exp(scores - largest)
        total = shares.sum(-1, keepdims=True)
        out = jnp.einsum("RS,SH->RH", shares.reshape(-1, S).astype(v.dtype), v[:S]).reshape(q[:, t].shape) / total
        sees = mask[t, :S].any(-1, keepdims=True)
        parts.append((jnp.where(sees, out, 0).astype(q.dtype), largest + jnp.log(total)))
    return tuple(jnp.concatenate(x, axis=1) for x in zip(*parts))


def _head_gradient(mask, q, k, v, out, log_sum, gradient, causal):
    """In q, k and v."""
    type_ = at_least_fp32(q.dtype)
    dq, dk, dv = [], jnp.zeros(k.shape, type_), jnp.zeros(v.shape, type_)
    for t, S in _blocks(q.shape[1], len(k), causal):
        own_q, own_gradient = (x[:, t].reshape(-1, x.shape[-1]) for x in (q, gradient))          # [R, H]
        shares = jnp.exp(_scores(q[:, t], k[:S], mask[t, :S]) - log_sum[:, t])
        # A query that sees nothing has equal shares in what is hidden.
        shares = jnp.where(mask[t, :S], shares, 0).reshape(-1, S)
        inner = jnp.sum((gradient[:, t] * out[:, t]).astype(type_), -1).reshape(-1, 1)
        d_scores = jnp.einsum("RH,SH->RS", own_gradient, v[:S], preferred_element_type=type_) - inner
        d_scores = (d_scores * shares).astype(q.dtype)
        dq.append(jnp.einsum("RS,SH->RH", d_scores, k[:S]).reshape(q[:, t].shape))
        dk = dk.at[:S].add(jnp.einsum("RS,RH->SH", d_scores, own_q))
        dv = dv.at[:S].add(jnp.einsum("RS,RH->SH", shares.astype(q.dtype), own_gradient))
    return jnp.concatenate(dq, axis=1), dk.astype(k.dtype), dv.astype(v.dtype)
