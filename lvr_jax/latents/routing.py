"""Attention masks by token role: a checkpoint trained with a bottleneck mask is also run with it."""

import jax
import jax.numpy as jnp

from lvr_jax.latents.conditions import ANSWER, IMAGE, ROLES, TEXT

# (query role, key role), by the name that configs and config.json give it.
ATTENTION = {
    "full": (),
    # The latents are the only way from the image to the answer. Everything else is blind to the image, the question
    # too: it follows the image, and would carry it past the latents.
    "bottleneck": ((TEXT, IMAGE), (ANSWER, IMAGE)),
}
FIELD = "lvr_attention"         # of config.json; a checkpoint without it sees everything


def blocked(name: str) -> jax.Array | None:
    """[R, R] bool for models.attention, or None."""
    pairs = ATTENTION[name]
    return jnp.zeros((ROLES, ROLES), bool).at[tuple(zip(*pairs))].set(True) if pairs else None
