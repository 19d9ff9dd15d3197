"""The next token is picked as transformers' own logits processors would have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvr_jax.latents.decoding import Decoding, penalise, pick, ranked

V = 40


def logits_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(V).astype(np.float32) * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 5, 39, 40, 99]), st.sampled_from([0.05, 0.3, 0.8, 0.999, 1.0]))
def test_candidates_are_the_top_k_then_the_smallest_set_of_top_p(seed, top_k, top_p):
    logits = logits_of(seed)
    values, ids = (np.asarray(x) for x in ranked(jnp.asarray(logits), top_k, top_p))
    order = np.argsort(-logits)[: top_k or V].astype(int)
    p = np.exp(logits[order].astype(np.float64))
    p /= p.sum()
    before = np.concatenate([[0], np.cumsum(p)[:-1]])
    if np.abs(before - top_p).min() > 1e-6:             # not at a rounding tie
        assert ids[np.isfinite(values)].tolist() == order[before < top_p].tolist()
    assert ids[0] == logits.argmax() and np.isfinite(values[0])


@pytest.mark.parity
@pytest.mark.parametrize("settings", [(1.05, 1.0, 0, 1.0), (1.3, 0.7, 10, 1.0), (1.0, 0.5, 8, 0.6)])
def test_the_distribution_is_that_of_transformers_processors(settings):
    penalty, temperature, top_k, top_p = settings
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    logits, seen = logits_of(1), np.array([3, 7, 7, 20])
    ids, scores = torch.tensor(seen[None]), torch.tensor(logits[None])
    processors = [hf.RepetitionPenaltyLogitsProcessor(penalty), hf.TemperatureLogitsWarper(temperature)]
    processors += [hf.TopKLogitsWarper(top_k)] if top_k else []
    processors += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for processor in processors:
        scores = processor(ids, scores)
    mask = np.isin(np.arange(V), seen)
    ours = np.full(V, -np.inf, np.float32)
    values, places = ranked(penalise(jnp.asarray(logits), mask, penalty) / temperature, top_k, top_p)
    ours[np.asarray(places)] = values
    np.testing.assert_allclose(ours, scores[0].numpy(), rtol=1e-6)


def test_samples_follow_the_distribution_and_greedy_is_the_argmax():
    logits = jnp.asarray(logits_of(2))
    keys = jax.random.split(jax.random.key(0), 20_000)
    decoding = Decoding(4, (), temperature=0.8, top_k=6)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: pick(logits, key, decoding)))(keys))
    values, ids = ranked(logits / 0.8, 6, 1.0)
    expected = np.asarray(jax.nn.softmax(values))
    share = np.array([(drawn == i).mean() for i in np.asarray(ids)])
    np.testing.assert_allclose(share, expected, atol=0.015)
    assert set(drawn) <= set(np.asarray(ids).tolist())
    assert int(pick(logits, keys[0], Decoding(4, ()))) == int(logits.argmax())
