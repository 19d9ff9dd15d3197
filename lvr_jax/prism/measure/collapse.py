"""Measures collapse of latents into a narrow region, across items, steps or dimensions.

Pure arrays, fp32; on the host, but for the spectrum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.prism.measure.alignment import cosine_similarity

_HIGHEST = jax.lax.Precision.HIGHEST


def pairwise_cosine(states, valid) -> np.ndarray:
    """Mean cosine over all pairs of valid rows of states [..., I, D], valid [..., I]: [...], NaN below two rows.

    1: every item has the same direction.
    """
    valid = np.asarray(valid, bool)
    states = np.where(valid[..., None], np.asarray(states, np.float32), 0)
    unit = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-8)
    total, items = unit.sum(-2), valid.sum(-1)
    # The sum over all pairs is the squared length of the summed directions; each row's pairing with itself goes.
    own = (unit * unit).sum((-2, -1))
    return ((total * total).sum(-1) - own) / np.where(items > 1, items * (items - 1), np.nan)


def adjacent_cosine(latents, valid) -> np.ndarray:
    """Cosine of each latent with the one before, [I, Z-1]; NaN where either is not valid. 1: the loop stands still."""
    latents, valid = np.asarray(latents, np.float32), np.asarray(valid, bool)
    cosine = cosine_similarity(latents[:, 1:], latents[:, :-1])
    return np.where(valid[:, 1:] & valid[:, :-1], cosine, np.nan)


@jax.jit
def spectrum(states) -> jax.Array:
    """Variances [min(I, D)] along the principal axes of states [I, D], largest first (population, centred)."""
    states = jnp.asarray(states, jnp.float32)
    items, width = states.shape
    centred = states - states.mean(0)
    sides = "id,jd->ij" if items <= width else "id,ie->de"
    gram = jnp.einsum(sides, centred, centred, precision=_HIGHEST)
    return jnp.maximum(jnp.linalg.eigvalsh(gram)[::-1], 0) / items


def participation_ratio(variances) -> float:
    """(sum v)^2 / sum v^2 of a spectrum: the number of directions in use; NaN if nothing varies."""
    variances = np.asarray(variances)
    square = (variances**2).sum()
    return float(variances.sum() ** 2 / square) if square > 0 else float("nan")


def rank_for_variance(variances, share: float = 0.9) -> int:
    """How many principal axes hold this share of the variance of a spectrum (largest first); 0 if nothing varies."""
    variances = np.asarray(variances)
    total = variances.sum()
    return int((np.cumsum(variances) / total < share).sum()) + 1 if total > 0 else 0


def collapse(latents, valid) -> dict[str, float]:
    """All of the above for latents [I, Z, D], valid [I, Z].

    pairwise_cosine: at the same step, mean over the steps that two or more items reach; adjacent_cosine: mean over all
    neighbours; participation_ratio and rank_90 (axes for 90 % of the variance): of all valid latents together.
    """
    latents, valid = np.asarray(latents, np.float32), np.asarray(valid, bool)
    steps = pairwise_cosine(latents.swapaxes(0, 1), valid.T)
    adjacent = adjacent_cosine(latents, valid)
    variances = np.asarray(spectrum(latents[valid]))
    return {
        "pairwise_cosine": _mean_of_known(steps),
        "adjacent_cosine": _mean_of_known(adjacent),
        "participation_ratio": participation_ratio(variances),
        "rank_90": rank_for_variance(variances),
    }


def _mean_of_known(values):
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
