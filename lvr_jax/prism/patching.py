"""Patching: which state of a clean run, put into a corrupted one, brings the clean answer back.

One state at a time, of one position and one layer, over items whose answer the corruption changes. A patched run is a
condition like any other (`conditions.patched`), so that a whole map is one sweep on shared prefixes. Positions are
those that are decoded: the start marker's output, each latent, and the steps after them; what the prompt holds is the
same in both runs.
"""

from collections.abc import Sequence

import numpy as np

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.conditions import Condition, ConditionError
from lvr_jax.latents.positions import AFTER
from lvr_jax.prism.outcomes import Outcomes

MOST_LAYERS = 9


def positions(latents: int) -> tuple[str, ...]:
    """Places of the map, in the order of decoding; latents: of the longest block."""
    return ("h0", *(f"latent_{j}" for j in range(latents)), *(f"after_{k}" for k in range(1, AFTER + 1)))


def layers(asked: Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers asked for (0: what is fed, l: the output of block l), by default all or MOST_LAYERS evenly spaced.

    Raises ConditionError on one that a network of this depth does not have.
    """
    for layer in asked:
        if not 0 <= layer <= depth:
            raise ConditionError(f"patching.layers has {layer}, this network has 0 (what is fed) to {depth}")
    if asked:
        return tuple(dict.fromkeys(asked))
    return tuple(dict.fromkeys(np.linspace(0, depth, min(depth + 1, MOST_LAYERS)).round().astype(int).tolist()))


def conditions(base: Condition, latents: int, chosen: Sequence[int]) -> list[Condition]:
    """The corrupted run and its patched ones, positions before layers."""
    return [base, *(cond.patched(base, p, layer) for p in positions(latents) for layer in chosen)]


def chosen_items(found: Outcomes, base: str, count: int) -> list[int]:
    """Items to patch: those whose content the corruption changes first, then others, in the benchmark's order."""
    c = found.at(base)
    fit = found.triggered & ~found.missing[c]
    changed = fit & (found.content[c] != found.content[0])
    order = np.argsort(np.where(changed, 0, np.where(fit, 1, 2)), kind="stable")[: min(count, int(fit.sum()))]
    return sorted(order.tolist())


def recovered(found: Outcomes, base: Condition, latents: int, chosen: Sequence[int]) -> dict:
    """The map: of the items whose content the corruption changed, the share that says the clean content again.

    recovered, items: [P][L], over the items that have the position (None without any)
    """
    clean, names = found.content[0], positions(latents)
    c = found.at(base.name)
    changed = ~found.missing[c] & (found.content[c] != clean)
    shares, counts = [], []
    for p in names:
        rows = [(k, changed & ~found.missing[k]) for k in (found.at(cond.patched(base, p, x).name) for x in chosen)]
        counts.append([int(r.sum()) for _, r in rows])
        shares.append([float((found.content[k] == clean)[r].mean()) if r.any() else None for k, r in rows])
    return {"condition": base.name, "of": len(clean), "changed": int(changed.sum()), "positions": names,
            "layers": list(chosen), "recovered": shares, "items": counts}  # fmt: skip
