"""The door to attention gives softmax attention, whatever the mask, the kernel and the length."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import distance

from lvr_jax.models import attention as door
from lvr_jax.models import splash_attention
from lvr_jax.models.attention import AttentionError, Keys, Queries
from lvr_jax.models.layers import REMAT

attention = jax.jit(door.attention, static_argnames=("implementation", "weights"))

# fp32 softmax over at most a few hundred keys: some tens of roundings of 6e-8.
FP32 = 1e-5


def random_keys(rng, B, S, K, H, segments=2, roles=None, causal=False) -> Keys:
    k, v = (rng.standard_normal((B, S, K, H)).astype(np.float32) for _ in range(2))
    role = None if roles is None else rng.integers(0, roles, (B, S))
    return jax.device_put(Keys(k, v, rng.integers(1, segments + 1, (B, S)), role, causal))


def random_queries(rng, B, T, N, H, segments=2, roles=None, blocked=None) -> Queries:
    q = rng.standard_normal((B, T, N, H)).astype(np.float32)
    role = None if roles is None else rng.integers(0, roles, (B, T))
    return jax.device_put(Queries(q, rng.integers(1, segments + 1, (B, T)), role, blocked))


def naive(queries: Queries, *keys: Keys):
    """fp64 loops over rows, heads and queries, on the host: [B, T, N, H] and weights [B, N, T, S]."""
    queries, *keys = jax.tree.map(np.asarray, (queries, *keys))
    q = np.asarray(queries.q, np.float64)
    k, v = (np.concatenate([np.asarray(getattr(part, x), np.float64) for part in keys], 1) for x in "kv")
    B, T, N, H = q.shape
    group = N // k.shape[2]
    out, weights = np.zeros_like(q), np.zeros((B, N, T, k.shape[1]))
    for b, n, t in np.ndindex(B, N, T):
        seen = []
        for part in keys:
            for s in range(part.k.shape[1]):
                ok = queries.segment[b, t] == part.segment[b, s] and not (part.causal and s > t)
                if queries.blocked is not None:
                    blocked = queries.blocked[b] if queries.blocked.ndim == 3 else queries.blocked
                    ok = ok and not blocked[queries.role[b, t], part.role[b, s]]
                seen.append(bool(ok))
        seen = np.array(seen)
        if seen.any():
            e = np.exp(q[b, t, n] @ k[b, seen, n // group].T / np.sqrt(H))
            weights[b, n, t, seen] = e / e.sum()
            out[b, t, n] = weights[b, n, t] @ v[b, :, n // group]
    return out, weights


def check(queries, *keys):
    out, weights = attention(queries, *keys, weights=True)
    expected, expected_weights = naive(queries, *keys)
    assert distance(out, expected) <= FP32
    assert distance(weights, expected_weights) <= FP32


def test_grouped_queries_with_segments_equal_naive_attention():
    rng = np.random.default_rng(0)
    check(random_queries(rng, 2, 5, 6, 8), random_keys(rng, 2, 7, 2, 8))


def test_causal_keys_equal_naive_attention():
    rng = np.random.default_rng(1)
    check(random_queries(rng, 2, 6, 2, 4), random_keys(rng, 2, 6, 2, 4, causal=True))


def test_several_keys_share_one_softmax():
    rng = np.random.default_rng(2)
    parts = random_keys(rng, 2, 3, 2, 4), random_keys(rng, 2, 1, 2, 4), random_keys(rng, 2, 5, 2, 4, causal=True)
    check(random_queries(rng, 2, 5, 4, 4), *parts)


@pytest.mark.parametrize("per_row", [False, True])
def test_blocked_roles_are_not_seen(per_row):
    rng = np.random.default_rng(3)
    blocked = jnp.array(rng.random((2, 3, 3) if per_row else (3, 3)) < 0.4)
    queries = random_queries(rng, 2, 6, 2, 4, roles=3, blocked=blocked)
    check(queries, random_keys(rng, 2, 4, 1, 4, roles=3), random_keys(rng, 2, 6, 1, 4, roles=3, causal=True))


def test_weights_do_not_change_the_result():
    rng = np.random.default_rng(4)
    queries, keys = random_queries(rng, 1, 5, 2, 4), random_keys(rng, 1, 5, 2, 4)
    np.testing.assert_array_equal(attention(queries, keys)[0], attention(queries, keys, weights=True)[0])


def gradients(function, queries, *keys):
    """Of a random projection of the result, in q and in every k and v."""

    def scalar(q, kv):
        parts = [dataclasses.replace(part, k=k, v=v) for part, (k, v) in zip(keys, kv)]
        out = function(dataclasses.replace(queries, q=q), *parts)
        return jnp.sum(out * jax.random.normal(jax.random.key(0), out.shape))

    return jax.jit(jax.grad(scalar, argnums=(0, 1)))(queries.q, [(p.k, p.v) for p in keys])


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
@pytest.mark.parametrize("per_row", [None, False, True])
def test_a_branch_sees_what_is_shared_and_itself(implementation, per_row):
    """As if it were alone in its row, also with roles, and with padding at the end of each part."""
    B, shared, each, count, roles = 2, 9, 5, 3, 3
    T, rng = shared + each * count, np.random.default_rng(5)
    blocked = None if per_row is None else jnp.array(rng.random((B, roles, roles) if per_row else (roles, roles)) < 0.3)
    queries = random_queries(rng, B, T, 4, 8, segments=1, roles=roles, blocked=blocked)
    keys = random_keys(rng, B, T, 2, 8, roles=roles, causal=True)
    segment = jnp.ones((B, T), jnp.int32).at[:, shared - 2 : shared].set(0).at[0, -1].set(0)
    queries = dataclasses.replace(queries, segment=segment)
    keys = dataclasses.replace(keys, segment=segment, role=queries.role, branches=(shared, count))
    out, _ = attention(queries, keys, implementation=implementation)
    for number in range(count):
        at = np.r_[:shared, shared + number * each : shared + (number + 1) * each]
        of = lambda x: x[:, at]  # noqa: E731, B023
        own = dataclasses.replace(queries, q=of(queries.q), segment=of(segment), role=of(queries.role))
        alone = Keys(of(keys.k), of(keys.v), of(segment), of(keys.role), causal=True)
        np.testing.assert_allclose(out[:, at], naive(own, alone)[0], atol=FP32)
    for refused, message in (
        (lambda: attention(queries, keys, weights=True), "without a cache and without attention weights"),
        (lambda: attention(queries, keys, random_keys(rng, B, 4, 2, 8)), "read in one pass"),
        (lambda: attention(queries, dataclasses.replace(keys, branches=(8, 3))), "24 tokens: expected 8 shared ones"),
    ):  # fmt: skip
        with pytest.raises(AttentionError, match=message):
            refused()


def test_a_query_that_sees_nothing_gives_zeros_and_passes_no_gradient():
    rng = np.random.default_rng(5)
    queries, keys = random_queries(rng, 1, 4, 2, 4, segments=1), random_keys(rng, 1, 3, 2, 4, segments=1)
    queries = dataclasses.replace(queries, segment=queries.segment.at[0, 2].set(9))
    out = attention(queries, keys)[0]
    assert not out[0, 2].any() and out[0, 1].any()
    dq, ((dk, dv),) = gradients(lambda q, *k: door.attention(q, *k)[0], queries, keys)
    assert not dq[0, 2].any() and dq[0, 1].any()
    assert all(np.isfinite(x).all() for x in (dq, dk, dv))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("roles", [None, 3])
def test_query_blocks_give_the_result_of_one_piece(monkeypatch, causal, roles):
    """The same sums in another order for keys and values, hence fp32 roundings and no more."""
    rng = np.random.default_rng(6)
    blocked = None if roles is None else jnp.array(rng.random((3, 3)) < 0.3)
    queries = random_queries(rng, 2, 37, 4, 8, roles=roles, blocked=blocked)
    keys = [random_keys(rng, 2, 5, 2, 8, roles=roles), random_keys(rng, 2, 37, 2, 8, roles=roles, causal=causal)]
    function = lambda q, *k: door.attention(q, *k)[0]  # noqa: E731

    def run():
        return jax.jit(function)(queries, *keys), gradients(function, queries, *keys)

    whole = run()
    monkeypatch.setattr(door, "MAX_SCORES", 2 * 4 * 42 * 8)  # rows * heads * keys * 8 queries: five blocks, one padded
    monkeypatch.setattr(door, "MIN_QUERIES", 1)
    jax.clear_caches()  # the limit is no argument of a traced program
    text = str(jax.make_jaxpr(function)(queries, *keys))
    assert "scan" in text and "2,2,2,37,37" not in text and "2,2,2,8,37" in text
    for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(whole)):
        assert distance(a, b) <= FP32


def test_a_long_image_never_holds_all_its_scores():
    """20,480 patches and 16 heads: 26 GB of fp32 scores in one piece; in blocks a few times MAX_SCORES."""
    P, N, H = 20_480, 16, 80

    def loss(q, k, v, segment):
        return door.attention(Queries(q, segment), Keys(k, v, segment))[0].astype(jnp.float32).sum()

    array, ids = jax.ShapeDtypeStruct((1, P, N, H), jnp.bfloat16), jax.ShapeDtypeStruct((1, P), jnp.int32)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array, array, array, ids).compile()
    assert step.memory_analysis().temp_size_in_bytes < 8 * 4 * door.MAX_SCORES


@pytest.mark.parametrize("T, causal, roles", [(300, True, None), (300, False, 3), (520, True, 3), (650, False, None)])
def test_blocks_equal_xla_in_values_and_gradients(T, causal, roles):
    """Grouped queries, packed segments, roles, a query that sees nothing, several blocks with a shorter last one, and
    blocks in which every query sees every key."""
    rng = np.random.default_rng(9)
    blocked = None if roles is None else jnp.array(rng.random((3, 3)) < 0.3)
    queries = random_queries(rng, 2, T, 4, 8, roles=roles, blocked=blocked)
    queries = dataclasses.replace(queries, segment=queries.segment.at[0, 2].set(9))
    keys = random_keys(rng, 2, T, 2, 8, roles=roles, causal=causal)
    if T == 650:
        queries, keys = (dataclasses.replace(x, segment=x.segment.at[0].set(1)) for x in (queries, keys))
        queries = dataclasses.replace(queries, segment=queries.segment.at[0, 2].set(9))
    blocks, xla = (lambda q, k, name=name: door.attention(q, k, implementation=name)[0] for name in ("blocks", "xla"))
    out = attention(queries, keys, implementation="blocks")[0]
    assert distance(out, attention(queries, keys)[0]) <= FP32
    assert not out[0, 2].any()
    for a, b in zip(*(jax.tree.leaves(gradients(f, queries, keys)) for f in (blocks, xla))):
        assert distance(a, b) <= FP32


def test_blocks_leave_what_they_could_not_hold_to_xla(monkeypatch):
    rng = np.random.default_rng(10)
    queries, keys = random_queries(rng, 1, 300, 4, 8), random_keys(rng, 1, 300, 2, 8, causal=True)
    monkeypatch.setattr(door, "MAX_SCORES", 2 * 100 * 300 - 1)      # one less than a block of 100 queries has
    monkeypatch.setattr(door, "blockwise_attention", None)
    assert distance(door.attention(queries, keys, implementation="blocks")[0], naive(queries, keys)[0]) <= FP32


def test_blocks_hold_no_scores_of_a_whole_row():
    q, kv = (jax.ShapeDtypeStruct((1, 2048, n, 8), jnp.float32) for n in (4, 2))
    segment = jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def loss(q, k, v, segment):
        return door.attention(Queries(q, segment), Keys(k, v, segment, causal=True), implementation="blocks")[0].sum()

    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, kv, kv, segment))
    assert "f32[2,256,256]" in text and not re.search(r"f32\[[^]]*2048,2048\]", text)


def splash_arguments(T, N, K, H, causal, rng):
    """Padded, packed rows: segments 1, 2, then padding, of different lengths in each row."""
    cuts = np.array([[T // 3, T - 20], [T // 2, T - 1]])
    place = np.arange(T)
    segment = np.stack([np.where(place < a, 1, np.where(place < b, 2, 0)) for a, b in cuts])
    queries, keys = random_queries(rng, 2, T, N, H), random_keys(rng, 2, T, K, H, causal=causal)
    segment = jnp.array(segment, jnp.int32)
    return dataclasses.replace(queries, segment=segment), dataclasses.replace(keys, segment=segment)


@pytest.mark.parametrize(
    "T, N, K, H, causal", [(256, 4, 2, 128, True), (128, 2, 2, 80, False), (128, 3, 1, 128, True)]
)
def test_splash_equals_xla_in_values_and_gradients(T, N, K, H, causal):
    """The kernel itself, interpreted: causal and full, packed segments, grouped queries, head widths 128 and 80."""
    queries, keys = splash_arguments(T, N, K, H, causal, np.random.default_rng(7))
    xla = lambda q, k: door.attention(q, k)[0]  # noqa: E731
    splash = lambda q, k: door._splash(q, k, interpret=True)  # noqa: E731
    assert distance(jax.jit(splash)(queries, keys), attention(queries, keys)[0]) <= FP32
    for a, b in zip(*(jax.tree.leaves(gradients(f, queries, keys)) for f in (splash, xla))):
        assert distance(a, b) <= FP32


def packed(*lengths: int, T: int) -> np.ndarray:
    """Segment ids of one row: 1, 2, ..., then padding."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, T - len(ids))).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_splash_skips_blocks_of_other_segments_and_changes_nothing(monkeypatch, causal):
    """Five blocks of queries, of other sides than those of keys; each row has its own segments, one is all padding."""
    sides = splash_attention.Blocks(queries=128, keys=256, back_queries=256, back_keys=128, held=128)
    monkeypatch.setattr(splash_attention, "BLOCKS", sides)
    rng, T = np.random.default_rng(10), 1280
    segment = jnp.array([packed(100, 300, 500, T=T), packed(1280, T=T), packed(256, 256, 600, T=T), packed(T=T)])
    segment = segment.at[0, 200:220].set(0).at[2, 240:300].set(0)       # empty slots, as at an image's edge
    queries, keys = random_queries(rng, 4, T, 2, 16), random_keys(rng, 4, T, 1, 16, causal=causal)
    # What padding sees is nobody's concern: neither its result nor, in a loss without it, its gradient.
    real = (segment > 0)[:, :, None, None]
    queries, keys = dataclasses.replace(queries, segment=segment), dataclasses.replace(keys, segment=segment)
    xla = lambda q, k: jnp.where(real, door.attention(q, k)[0], 0)  # noqa: E731
    splash = lambda q, k: jnp.where(real, door._splash(q, k, interpret=True), 0)  # noqa: E731
    for a, b in zip(*(jax.tree.leaves(gradients(f, queries, keys)) for f in (splash, xla))):
        assert np.isfinite(a).all() and distance(a, b) <= FP32
    out = jax.jit(functools.partial(door._splash, interpret=True))(queries, keys)
    assert np.isfinite(out).all() and distance(jnp.where(real, out, 0), xla(queries, keys)) <= FP32


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries, keys", [(4, 4), (8, 4), (4, 16)])
def test_the_blocks_that_splash_computes_are_those_that_hold_a_pair(queries, keys, causal):
    """Counted pair by pair, over packed rows of random lengths; slots that are empty amid an image cost no block."""
    rng = np.random.default_rng(11)
    blocks = lambda ids: np.asarray(splash_attention.visible_blocks(jnp.array(ids), queries, keys, causal))  # noqa: E731
    place = np.arange(128)

    def hold(pairs):
        pairs = pairs & (place[:, None] >= place) if causal else pairs
        return pairs.reshape(128 // queries, queries, 128 // keys, keys).any((1, 3))

    for _ in range(20):
        ids = packed(*rng.integers(1, 30, 4), T=128)
        seen = blocks(ids)
        np.testing.assert_array_equal(seen, hold((ids[:, None] == ids) & (ids > 0) | np.eye(128, dtype=bool)))
        inside = (ids > 0) & (np.roll(ids, 1) == ids) & (np.roll(ids, -1) == ids)       # neither first nor last
        np.testing.assert_array_equal(blocks(np.where(inside & (rng.random(128) < 0.5), 0, ids)), seen)
    mixed = rng.integers(1, 4, 128)                     # in no order: true wherever there is a pair
    assert blocks(mixed)[hold(mixed[:, None] == mixed)].all()


@pytest.mark.parametrize("policy, forward_passes", [("block", 2), ("attention", 1), ("dots_attention", 1)])
def test_remat_may_keep_what_splash_gave(policy, forward_passes):
    """The kernel of the forward pass stands twice in a gradient that computes a layer again, once where it is kept."""
    queries, keys = splash_arguments(128, 2, 1, 16, True, np.random.default_rng(12))

    def loss(q):
        layer = lambda q: door._splash(dataclasses.replace(queries, q=q), keys, interpret=True)  # noqa: E731
        return jax.checkpoint(layer, policy=REMAT[policy])(q * 2).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(queries.q))
    assert text.count("name=splash_mqa_fwd") == forward_passes and text.count("name=splash_mqa_dkv") == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"implementation": "flash"}, "attention implementation 'flash', expected one of"),
        ({"weights": True}, "splash attention does not return weights; use implementation='xla'"),
        ({"implementation": "cudnn", "weights": True}, "cudnn attention does not return weights"),
        ({"implementation": "blocks", "cache": True}, "blocks attention takes the pass's own keys only, not a cache"),
        ({"cache": True}, "splash attention takes the pass's own keys only, not a cache"),
        ({"roles": True}, "splash attention cannot express a mask by roles"),
        ({"T": 100}, "splash attention needs lengths that are multiples of 128, got 100 queries and 100 keys"),
        ({"implementation": "cudnn"}, "cudnn attention takes bf16 or fp16, got float32"),
    ],
)
def test_what_a_kernel_cannot_express_is_refused_by_name(change, message):
    rng = np.random.default_rng(8)
    change = {"implementation": "splash", "weights": False, "cache": False, "roles": False, "T": 128} | change
    T, roles = change["T"], 2 if change["roles"] else None
    queries = random_queries(rng, 1, T, 2, 8, roles=roles, blocked=jnp.zeros((2, 2), bool) if roles else None)
    keys = [random_keys(rng, 1, T, 2, 8, roles=roles, causal=True)] * (2 if change["cache"] else 1)
    with pytest.raises(AttentionError, match=message) as error:
        attention(queries, *keys, implementation=change["implementation"], weights=change["weights"])
    assert "\n" not in str(error.value)
