"""What became of every answer under every condition, and is the difference more than chance?

Reads a finished sweep: replies, letters, margins; then the paired tests, the verdict, strengths of noise, single
latents. An item whose condition had nothing to feed (no donor, no box) is left out of that condition, and counted.
"""

import dataclasses
import re

import numpy as np

from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.statistics.paired import ConditionEffect, adjust, compare_conditions
from lvr_jax.prism.verdict import Verdict, load_bearing_verdict

_NOISE = re.compile(r"(relative_)?noise_([0-9.e+-]+)")
_SINGLE = re.compile(r"(.+)@(\d+)")


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Conditions C (the clean pass first) by items I in the benchmark's order.

    right [C, I] bool; parsed [C, I]: what the reply was read as; margin [C, I]: gold letter over the best other one,
    NaN without a letter to read (or None for all, where the tokenizer does not tell letters apart by one token);
    missing [C, I]; fed [C, I]: latents fed; reply [I]: the clean one
    """

    conditions: tuple[str, ...]
    right: np.ndarray
    parsed: np.ndarray
    margin: np.ndarray | None
    missing: np.ndarray
    fed: np.ndarray
    reply: list[str]

    def at(self, name: str) -> int:
        return self.conditions.index(name)

    @property
    def triggered(self) -> np.ndarray:
        """[I] bool: the clean pass fed a latent."""
        return self.fed[0] > 0

    def of(self, rows: np.ndarray) -> "Outcomes":
        """The same for some items."""
        margin = None if self.margin is None else self.margin[:, rows]
        replies = [reply for reply, kept in zip(self.reply, rows) if kept]
        return Outcomes(self.conditions, self.right[:, rows], self.parsed[:, rows], margin, self.missing[:, rows],
                        self.fed[:, rows], replies)  # fmt: skip


def outcomes(items: Items, results: SweepResults) -> Outcomes:
    at = {name: n for n, name in enumerate(results.items)}
    order = np.array([at[name] for name in items.ids])
    token, live = (results.arrays[key][:, order] for key in ("token", "live"))
    C, I = token.shape[:2]
    right, parsed, replies = np.zeros((C, I), bool), np.full((C, I), "", object), []
    for c in range(C):
        for i in range(I):
            reply, found, right[c, i] = items.correct(i, token[c, i], live[c, i])
            parsed[c, i] = found or ""
            if c == 0:
                replies.append(reply)
    margin = None
    if items.place.ids:
        margin = margins(results.arrays["letters@answer"][:, order], items.labels, items.options)
    fed = results.arrays["latent"][:, order] & live
    return Outcomes(tuple(results.conditions), right, parsed, margin, results.missing[:, order], fed.sum(-1), replies)


def margins(letters: np.ndarray, labels: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Letter logits [..., I, O] -> gold minus best other offered [..., I]."""
    place = np.arange(letters.shape[-1])
    gold, offered = place == labels[:, None], place < options[:, None]
    other = np.where(offered & ~gold, letters, -np.inf).max(-1)
    return np.where(gold, letters, 0).sum(-1) - other


@dataclasses.dataclass(frozen=True)
class Effect:
    """A condition's paired comparison with clean, and on what it rests. content: evidence for the verdict or not;
    missing: items left out; fed: mean latents fed; stats: on the items that are left (None: fewer than two)."""

    name: str
    content: bool
    missing: int
    fed: float
    stats: ConditionEffect | None


def effects(found: Outcomes, *, level: float, draws: int, seed: int) -> list[Effect]:
    """Every condition but the clean one; p-values adjusted over all of them together."""
    done: dict[str, ConditionEffect | None] = {}
    for mask in {found.missing[c].tobytes(): found.missing[c] for c in range(1, len(found.conditions))}.values():
        names = [n for c, n in enumerate(found.conditions) if c and (found.missing[c] == mask).all()]
        part = found.of(~mask)
        if (~mask).sum() < 2:
            done |= dict.fromkeys(names)
            continue
        rows = [found.at(name) for name in names]
        margin = (None, None) if part.margin is None else (part.margin[0], part.margin[rows])
        stats = compare_conditions(part.right[0], part.right[rows], *margin, names=names, level=level, draws=draws,
                                   seed=seed)  # fmt: skip
        done |= {s.name: s for s in stats}
    done = _readjusted(done)
    return [
        Effect(name, corruptions.is_content(name), int(found.missing[c].sum()), float(found.fed[c].mean()), done[name])
        for c, name in enumerate(found.conditions) if c
    ]  # fmt: skip


def _readjusted(stats: dict) -> dict:
    """Holm and Benjamini-Hochberg over all conditions, for they were compared in groups."""
    known = [name for name, s in stats.items() if s is not None]
    for kind in ("mcnemar", "margin"):
        p = [getattr(stats[name], f"p_{kind}") for name in known]
        for short, method in (("holm", "holm"), ("bh", "fdr_bh")):
            for name, value in zip(known, adjust(p, method)):
                stats[name] = dataclasses.replace(stats[name], **{f"p_{kind}_{short}": float(value)})
    return stats


def verdict(found: Outcomes, options: np.ndarray, *, level: float, draws: int, seed: int) -> Verdict | None:
    """From the conditions on the latents' content, over the items whose clean pass fed latents; None without any."""
    rows = [c for c, name in enumerate(found.conditions)
            if c and corruptions.is_content(name) and not found.missing[c][found.triggered].any()]  # fmt: skip
    part = found.of(found.triggered)
    if not rows or found.triggered.sum() < 2:
        return None
    margin = (None, None) if part.margin is None else (part.margin[0], part.margin[rows])
    return load_bearing_verdict(
        part.right[0], part.right[rows], *margin, chance=1 / options[found.triggered],
        names=[found.conditions[c] for c in rows], level=level, draws=draws, seed=seed,
    )  # fmt: skip


def strength(name: str) -> tuple[bool, float] | None:
    """(relative?, strength) of a noise condition."""
    match = _NOISE.fullmatch(name)
    return (bool(match[1]), float(match[2])) if match else None


def single_latent(name: str) -> tuple[str, int] | None:
    """(condition, latent) of a condition on one latent of each block."""
    match = _SINGLE.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def spread_of_margin(found: Outcomes, name: str, rows: np.ndarray) -> float:
    """Root mean square of what a condition adds to the margins of some items."""
    if found.margin is None:
        return float("nan")
    moved = (found.margin[found.at(name)] - found.margin[0])[rows]
    moved = moved[np.isfinite(moved)]
    return float(np.sqrt((moved**2).mean())) if len(moved) else float("nan")
