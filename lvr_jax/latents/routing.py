"""Attention masks by token role: a checkpoint trained with a bottleneck mask is also run with it."""

import numpy as np

from lvr_jax.latents.conditions import ANSWER, IMAGE, ROLES, TEXT
from lvr_jax.latents.spec import Array

# (query role, key role), by the name that configs and config.json give it.
ATTENTION = {
    "full": (),
    # The latents are the only way from the image to the answer. Everything else is blind to the image, the question
    # too: it follows the image, and would carry it past the latents.
    "bottleneck": ((TEXT, IMAGE), (ANSWER, IMAGE)),
}
FIELD = "lvr_attention"         # of config.json; a checkpoint without it sees everything


def blocked(name: str) -> Array | None:
    """[R, R] bool for models.attention, or None."""
    pairs = np.zeros((ROLES, ROLES), bool)
    for query, key in ATTENTION[name]:
        pairs[query, key] = True
    return pairs if ATTENTION[name] else None
