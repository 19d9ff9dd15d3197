"""Picks the next token, greedily or sampled, with the checkpoint's repetition penalty: pure functions of logits."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an answer is decoded: static under jit.

    max_new_tokens:     an open latent block is finished even beyond it, as in the released code
    stop:               ids that end the answer
    repetition_penalty: of the checkpoint's generation_config; over the prompt and every stored id, those in latent
                        slots included. 1 switches it off.
    temperature, top_k, top_p: sampling; temperature 0 is greedy, top_k 0 and top_p 1 are off
    """

    max_new_tokens: int
    stop: tuple[int, ...]
    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def penalise(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Ids seen before lose: positive logits are divided by the penalty, negative ones multiplied (CTRL, sec. 4.1)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def ranked(logits: jax.Array, top_k: int, top_p: float) -> tuple[jax.Array, jax.Array]:
    """The candidates of logits [V], best first: their logits and ids; -inf outside the smallest set whose probability,
    among the top k, reaches top p. Only the top k are ever sorted."""
    values, ids = jax.lax.top_k(logits, min(top_k, len(logits)) if top_k else len(logits))
    probabilities = jax.nn.softmax(values)
    before = jnp.cumsum(probabilities) - probabilities
    kept = (before < top_p) | (top_p >= 1)      # rounding may bring a sum to 1 before its end
    return jnp.where(kept, values, -jnp.inf), ids


def pick(logits: jax.Array, key: jax.Array, decoding: Decoding) -> jax.Array:
    """One token id from fp32 logits [V]; the key is used only when sampling."""
    if decoding.temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    logits = logits / decoding.temperature
    if not decoding.top_k and decoding.top_p >= 1:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    values, ids = ranked(logits, decoding.top_k, decoding.top_p)
    return ids[jax.random.categorical(key, values)].astype(jnp.int32)
