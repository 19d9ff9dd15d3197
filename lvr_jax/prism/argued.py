"""Directed test: whether answers move towards the answer that the fed latents belong to.

A donor whose question is of the item's kind and whose answer is another one argues for that answer; so does the item's
own scene with its target changed. How often the item is answered that way, with its own latents and with those, says
whether the answer listens to their content; losing accuracy alone would not.
"""

import numpy as np

from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.prism.measure.corruptions import COUNTERFACTUAL
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.outcomes import Outcomes
from lvr_jax.prism.statistics.intervals import tango, wilson
from lvr_jax.prism.statistics.power import exact_mcnemar


def argued(found: Outcomes, items: Items, results: SweepResults, level: float) -> dict[str, dict]:
    """condition -> the share of answers that are what its latents argue for; conditions that argue for nothing are left
    out. offered: the same over the items among whose options that answer is."""
    at = items.places(results.items)
    answers = {}
    for c, name in enumerate(results.conditions):
        donor = results.donor[c]
        if (donor >= 0).any():
            answers[name] = _of_donors(items, dict(zip(at.tolist(), np.where(donor >= 0, at[donor], -1).tolist())))
        elif results.records[c].source == COUNTERFACTUAL:
            answers[name] = items.counterfactual_contents()
    offered = [set(items.option_contents(i)) for i in range(len(items.ids))]
    summed = {}
    for name, texts in answers.items():
        c = found.at(name)
        rows = np.array([text is not None for text in texts]) & ~found.missing[c]
        told = np.array([text or "" for text in texts], object)
        there = rows & np.array([text in own for text, own in zip(texts, offered)])
        if rows.any():
            summed[name] = {**_share(found, c, told, rows, level), "offered": _share(found, c, told, there, level)}
    return summed


def _of_donors(items: Items, donor: dict[int, int]) -> list[str | None]:
    """What each item's donor would answer, None where that is no other answer to a question of the item's kind."""
    kinds, contents, found = items.categories, items.contents, []
    for i in range(len(items.ids)):
        d = donor[i]
        directed = d >= 0 and kinds[d] == kinds[i] and contents[d] != contents[i]
        found.append(contents[d] if directed else None)
    return found


def _share(found: Outcomes, c: int, told: np.ndarray, rows: np.ndarray, level: float) -> dict:
    """Answers that are `told`, clean and under condition c, over some items; exact McNemar p, and the difference."""
    n = int(rows.sum())
    if not n:
        return {"items": 0}
    before, after = ((found.content[k] == told)[rows] for k in (0, c))
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return {
        "items": n, "clean": wilson(int(before.sum()), n, level), "fed": wilson(int(after.sum()), n, level),
        "difference": tango(gained, lost, n, level), "p": float(exact_mcnemar(gained, lost)),
    }  # fmt: skip
