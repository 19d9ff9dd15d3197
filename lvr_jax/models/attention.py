"""The one door to attention kernels: xla, blocks (CPU), splash (TPU), cudnn (GPU).

Queries attend to one or more `Keys`: the tokens of the pass itself and, when decoding, cached ones. Scores over all
of them share one softmax, so a cache that many rollouts have in common is read in place and never copied. Grouped
queries share their key/value head inside the einsum.

Shapes: q [B, T, N, H]; k, v [B, S, K, H] with N a multiple of K; the result is [B, T, N, H]. Scores and softmax are
fp32 (fp64 for fp64 inputs), and never larger than MAX_SCORES: longer passes go block by block of queries.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lvr_jax.models.blockwise_attention import blockwise_attention, scores_held
from lvr_jax.models.placement import HEADS, current_mesh, row_axes
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.splash_attention import BLOCKS, splash_attention

IMPLEMENTATIONS = ("xla", "blocks", "splash", "cudnn")

# Scores held at once, 256 MiB in fp32 (a backward pass holds five times as much). One image of 20,480 patches and 16
# heads has 26 GB of them.
MAX_SCORES = 2**26
# ... but a block is never so small that it starves the matrix unit.
MIN_QUERIES = 256


class AttentionError(ValueError):
    """A mask that the chosen kernel cannot express, or a kernel that this platform does not have."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys and values, and which query may see which of them.

    k, v:     [B, S, K, H]
    segment:  [B, S] int, a query sees keys of its own segment only; 0 is padding and is seen by padding alone
    role:     [B, S] int or None, what a token is for; used with `Queries.blocked`
    causal:   the keys are the queries' own tokens: token t sees s <= t
    branches: (shared, count), as in `Tokens`: of the own tokens after the first `shared`, those of a branch do not see
              those of another. None: there are no branches
    """

    k: jax.Array
    v: jax.Array
    segment: jax.Array
    role: jax.Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    branches: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """q [B, T, N, H], its segments [B, T] and, optionally, roles [B, T] with blocked [R, R] or [B, R, R] (bool).

    blocked[r, s] forbids queries of role r to see keys of role s: attention routing and knock-outs are data.
    """

    q: jax.Array
    segment: jax.Array
    role: jax.Array | None = None
    blocked: jax.Array | None = None


def visible(queries: Queries, keys: Keys, first: jax.Array | int = 0) -> jax.Array:
    """Mask [B, T, S], True where query t may see key s; `first` is the position of query 0 among causal keys."""
    mask = queries.segment[:, :, None] == keys.segment[:, None, :]                       # [B, T, S]
    if keys.causal:
        T, S = mask.shape[1:]
        mask &= first + jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    if queries.blocked is not None:
        blocked = jnp.broadcast_to(queries.blocked, (mask.shape[0], *queries.blocked.shape[-2:]))
        rows = jnp.take_along_axis(blocked, queries.role[:, :, None], axis=1)            # [B, T, R]
        mask &= ~jnp.take_along_axis(rows, jnp.broadcast_to(keys.role[:, None, :], mask.shape), axis=2)
    return mask


def attention(
    queries: Queries, *keys: Keys, implementation: str = "xla", weights: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Scaled dot-product attention over all of `keys`.

    Returns ([B, T, N, H], attention weights [B, N, T, sum of S] if asked for, else None). `blocks`, `splash` and
    `cudnn` take one `Keys`, the last two without roles; anything else raises AttentionError. A query that sees nothing
    returns zeros; with `splash` a token of padding sees only the padding near it. `blocks` leaves what would exceed
    MAX_SCORES to `xla`. Branches are read in one pass, by `xla` after what they share, and give no weights.
    """
    if implementation not in IMPLEMENTATIONS:
        raise AttentionError(f"attention implementation {implementation!r}, expected one of {list(IMPLEMENTATIONS)}")
    if any(part.branches for part in keys):
        if len(keys) != 1 or weights:
            raise AttentionError("rows of branches are read in one pass, without a cache and without attention weights")
        return _branched(queries, keys[0], implementation), None
    if implementation == "xla":
        return _xla(queries, keys, weights)
    if weights:
        raise AttentionError(f"{implementation} attention does not return weights; use implementation='xla'")
    if len(keys) != 1:
        raise AttentionError(f"{implementation} attention takes the pass's own keys only, not a cache; use 'xla'")
    if implementation == "blocks" and scores_held(queries.q, keys[0].k, keys[0].causal) > MAX_SCORES:
        return _xla(queries, keys, weights)     # in more blocks than one would want to compile one by one
    if implementation == "blocks":
        kernel = functools.partial(blockwise_attention, causal=keys[0].causal)
        return _on_each_device(kernel, queries.q, keys[0].k, keys[0].v, visible(queries, keys[0])), None
    if queries.blocked is not None:
        raise AttentionError(f"{implementation} attention cannot express a mask by roles; use implementation='xla'")
    return {"splash": _splash, "cudnn": _cudnn}[implementation](queries, keys[0]), None


def _xla(queries: Queries, keys: tuple[Keys, ...], weights: bool) -> tuple[jax.Array, jax.Array | None]:
    B, T, N, H = queries.q.shape
    blocks = -(-B * N * T * sum(part.k.shape[1] for part in keys) // MAX_SCORES)
    size = max(-(-T // blocks), MIN_QUERIES)
    if weights or size >= T:
        return _softmax_attention(queries, keys, weights)

    def block(_, part):
        first, (q, segment, role) = part
        here = dataclasses.replace(queries, q=q, segment=segment, role=role)
        return None, _softmax_attention(here, keys, False, first)[0]

    def split(x):  # [B, T, ...] -> [T / size, B, size, ...]; what pads the last block is cut off again
        x = jnp.pad(x, [(0, 0), (0, -T % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(split, (queries.q, queries.segment, queries.role))
    # The backward pass computes a block's scores again instead of keeping all of them.
    _, out = jax.lax.scan(jax.checkpoint(block), None, (size * jnp.arange(len(parts[0])), parts))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :T], None


def _softmax_attention(queries: Queries, keys: tuple[Keys, ...], weights: bool, first: jax.Array | int = 0):
    B, T, N, H = queries.q.shape
    K = keys[0].k.shape[2]
    q = (queries.q * H**-0.5).reshape(B, T, K, N // K, H)
    score_type = at_least_fp32(q.dtype)
    mask = jnp.concatenate([visible(queries, part, first) for part in keys], -1)[:, None, None]  # [B, 1, 1, T, S]
    parts = [jnp.einsum("BTKGH,BSKH->BKGTS", q, part.k, preferred_element_type=score_type) for part in keys]
    scores = jnp.where(mask, jnp.concatenate(parts, -1), jnp.finfo(score_type).min)
    shares = jax.nn.softmax(scores)                                                      # [B, K, G, T, S]
    ends = itertools.accumulate(part.k.shape[1] for part in keys)
    out = sum(
        jnp.einsum("BKGTS,BSKH->BTKGH", shares[..., end - part.k.shape[1] : end].astype(part.v.dtype), part.v)
        for end, part in zip(ends, keys)
    )
    # A query that sees nothing gets zeros, not a mean over what is hidden.
    sees = mask.any(-1)                                                                  # [B, 1, 1, T]
    out = jnp.where(jnp.moveaxis(sees, -1, 1)[..., None], out, 0).reshape(B, T, N, H).astype(queries.q.dtype)
    return out, jnp.where(sees[..., None], shares, 0).reshape(B, N, T, -1) if weights else None


def _splash(queries: Queries, keys: Keys, interpret: bool = False) -> jax.Array:
    """Pallas splash attention, on every device for its own rows and heads."""
    T, S = queries.q.shape[1], keys.k.shape[1]
    if T != S or BLOCKS.of(T) is None:
        raise AttentionError(f"splash attention needs lengths that are multiples of 128, got {T} queries and {S} keys")
    kernel = functools.partial(splash_attention, causal=keys.causal, interpret=interpret)
    return _on_each_device(kernel, queries.q, keys.k, keys.v, queries.segment)


def _branched(queries: Queries, keys: Keys, implementation: str) -> jax.Array:
    """Each branch is a row of its own, to which what is shared is a past; `implementation` is for what is shared."""
    (shared, count), (B, T) = keys.branches, queries.segment.shape
    if T <= shared or (T - shared) % count:
        raise AttentionError(f"a row of {T} tokens: expected {shared} shared ones and {count} branches of one size")
    of_branches = lambda x: x[:, shared:].reshape(B * count, -1, *x.shape[2:])  # noqa: E731
    once_each = lambda x: jnp.repeat(x, count, axis=0)  # noqa: E731
    blocked, keys = queries.blocked, dataclasses.replace(keys, branches=None)
    queries = dataclasses.replace(queries, blocked=None)
    first, own_first = jax.tree.map(lambda x: x[:, :shared], (queries, keys))
    out, _ = attention(dataclasses.replace(first, blocked=blocked), own_first, implementation=implementation)
    past = dataclasses.replace(jax.tree.map(once_each, own_first), causal=False)
    rest, own = jax.tree.map(of_branches, (queries, keys))
    blocked = once_each(blocked) if blocked is not None and blocked.ndim == 3 else blocked
    seen, _ = attention(dataclasses.replace(rest, blocked=blocked), past, own)
    return jnp.concatenate([out, seen.reshape(B, T - shared, *seen.shape[2:])], axis=1)


def _on_each_device(kernel: Callable, q, k, v, *of_rows) -> jax.Array:
    """Runs a kernel under shard_map: the partitioner cannot shard a custom kernel by itself. of_rows: more
    arguments, each [B, ...]."""
    mesh, N, K = current_mesh(), q.shape[2], k.shape[2]
    if mesh.empty:
        return kernel(q, k, v, *of_rows)
    devices = mesh.shape.get(HEADS, 1)
    if K % devices and devices % K == 0 and N % devices == 0:
        # More devices than key/value heads: each device gets the one that its queries share.
        k, v = (jnp.repeat(x, devices // K, axis=2) for x in (k, v))
    cut = HEADS if HEADS in mesh.axis_names and k.shape[2] % devices == 0 else None
    axes = row_axes(q.shape[0])
    heads, rows = PartitionSpec(axes, None, cut), PartitionSpec(axes)
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, *[rows] * len(of_rows)), out_specs=heads, check_vma=False
    )(q, k, v, *of_rows)  # fmt: skip


def _cudnn(queries: Queries, keys: Keys) -> jax.Array:
    """cuDNN flash attention through jax.nn; segments travel as a boolean mask [B, 1, T, S]."""
    if queries.q.dtype not in (jnp.bfloat16, jnp.float16):
        raise AttentionError(f"cudnn attention takes bf16 or fp16, got {queries.q.dtype}; use implementation='xla'")
    mask = visible(queries, keys)[:, None]
    return jax.nn.dot_product_attention(queries.q, keys.k, keys.v, mask=mask, implementation="cudnn")
