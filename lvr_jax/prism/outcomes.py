"""Reads a finished sweep into outcomes: what every item answered under every condition, by content and by letter.

Then the paired tests, the verdict, strengths of noise, single latents. An item whose condition had nothing to feed (no
donor, no box) is left out of that condition, and counted.
"""

import dataclasses
import re

import numpy as np

from lvr_jax.evaluation.content import ContentReader
from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.statistics.paired import ConditionEffect, adjust, compare_conditions
from lvr_jax.prism.verdict import CARRIES, FORMAT, HIDES, LISTENS, Verdict, two_verdicts

_NOISE = re.compile(r"(relative_)?noise_([0-9.e+-]+)")
_SINGLE = re.compile(r"(.+)@(\d+)")


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Conditions C (the clean pass first) by items I in the benchmark's order; every array [C, I].

    right: the answer's content is right, the unit of every verdict; content: its text, "" without one
    letter_right, letter: of the letter that was read, "" without one; follows: the letter is that of the reply's own
    word, NaN where that cannot be said; readable: there is an answer of either kind; reply: what was said
    margin: gold letter over the best other one, NaN without a letter to read (or None for all, where the tokenizer does
    not tell letters apart by one token); missing: the condition had nothing to feed; fed: latents fed
    worded: replies have a word before the letter; else content is the text of the option that the letter picks
    """

    conditions: tuple[str, ...]
    right: np.ndarray
    content: np.ndarray
    letter_right: np.ndarray
    letter: np.ndarray
    follows: np.ndarray
    readable: np.ndarray
    reply: np.ndarray
    margin: np.ndarray | None
    missing: np.ndarray
    fed: np.ndarray
    worded: bool

    def at(self, name: str) -> int:
        return self.conditions.index(name)

    @property
    def triggered(self) -> np.ndarray:
        """[I] bool: the clean pass fed a latent."""
        return self.fed[0] > 0

    @property
    def changed(self) -> np.ndarray:
        """[C, I] bool: the reply is not the clean one, word for word."""
        return self.reply != self.reply[0]

    def select(self, rows: np.ndarray) -> "Outcomes":
        """The same for some items."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{
            name: value[:, rows] for name, value in arrays.items() if isinstance(value, np.ndarray)
        })  # fmt: skip


def outcomes(items: Items, results: SweepResults) -> Outcomes:
    """Reads what every item answered under every condition from a sweep's results."""
    at = {name: n for n, name in enumerate(results.items)}
    order = np.array([at[name] for name in items.ids])
    token, live, latent = (results.arrays[key][:, order] for key in ("token", "live", "latent"))
    replies = items.replies(token, live, latent)
    reader = ContentReader.of(items.benchmark.rows, [reply.word for reply in replies[0]])
    said = [[reader.read(i, r.word, r.letter) for i, r in enumerate(row)] for row in replies]
    margin = None
    if items.place.ids:
        margin = margins(results.arrays["letters@answer"][:, order], items.labels, items.options)
    texts = lambda rows, of: np.array([[of(each) or "" for each in row] for row in rows], object)  # noqa: E731
    flags = lambda rows, of: np.array([[of(each) for each in row] for row in rows], bool)  # noqa: E731
    return Outcomes(
        tuple(results.conditions),
        right=flags(said, lambda s: s.right), content=texts(said, lambda s: s.content),
        letter_right=flags(replies, lambda r: r.right), letter=texts(replies, lambda r: r.letter),
        follows=np.array([[np.nan if s.follows is None else s.follows for s in row] for row in said], float),
        readable=flags(said, lambda s: s.readable), reply=texts(replies, lambda r: r.said), margin=margin,
        missing=results.missing[:, order], fed=(latent & live).sum(-1), worded=reader.worded,
    )  # fmt: skip


def margins(letters: np.ndarray, labels: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Letter logits [..., I, O] -> gold minus best other offered [..., I]."""
    place = np.arange(letters.shape[-1])
    gold, offered = place == labels[:, None], place < options[:, None]
    other = np.where(offered & ~gold, letters, -np.inf).max(-1)
    return np.where(gold, letters, 0).sum(-1) - other


@dataclasses.dataclass(frozen=True)
class Effect:
    """A condition's paired comparison with clean, and on what it rests.

    content: evidence that own latents carry something, or not; missing: items left out; fed: mean latents fed; stats:
    of the answer's content on the items that are left (None: fewer than two); letter: of its letter, likewise
    unreadable, changed: replies without an answer, and other than the clean one; follows: share of letters that are
    those of the reply's own word (None: no words)
    """

    name: str
    content: bool
    missing: int
    fed: float
    stats: ConditionEffect | None
    letter: ConditionEffect | None
    unreadable: int
    changed: int
    follows: float | None


def effects(found: Outcomes, *, level: float, draws: int, seed: int) -> list[Effect]:
    """Every condition but the clean one; p-values adjusted over all of them together."""
    how = {"level": level, "draws": draws, "seed": seed}
    content = _compared(found, found.right, found.margin, **how)
    letter = _compared(found, found.letter_right, None, **how)
    rows = {name: ~found.missing[c] for c, name in enumerate(found.conditions)}
    return [
        Effect(name, corruptions.is_content(name), int(found.missing[c].sum()), float(found.fed[c].mean()),
               content[name], letter[name], int((~found.readable[c] & rows[name]).sum()),
               int((found.changed[c] & rows[name]).sum()), followed(found, c))
        for c, name in enumerate(found.conditions) if c
    ]  # fmt: skip


def followed(found: Outcomes, c: int) -> float | None:
    """Share of letters that are those of the reply's own word, where it is among the item's options."""
    known = np.isfinite(found.follows[c]) & ~found.missing[c]
    return float(found.follows[c][known].mean()) if known.any() else None


def _compared(found: Outcomes, right: np.ndarray, margin: np.ndarray | None, *, level, draws, seed) -> dict:
    """name -> statistics of right or wrong [C, I] against the clean row, on the items that the condition has."""
    done: dict[str, ConditionEffect | None] = {}
    for mask in {found.missing[c].tobytes(): found.missing[c] for c in range(1, len(found.conditions))}.values():
        names = [n for c, n in enumerate(found.conditions) if c and (found.missing[c] == mask).all()]
        if (~mask).sum() < 2:
            done |= dict.fromkeys(names)
            continue
        rows = [found.at(name) for name in names]
        margins = (None, None) if margin is None else (margin[0][~mask], margin[rows][:, ~mask])
        stats = compare_conditions(right[0][~mask], right[rows][:, ~mask], *margins, names=names, level=level,
                                   draws=draws, seed=seed)  # fmt: skip
        done |= {s.name: s for s in stats}
    return _readjusted(done)


def _readjusted(stats: dict) -> dict:
    """Holm and Benjamini-Hochberg over all conditions, for they were compared in groups."""
    known = [name for name, s in stats.items() if s is not None]
    for kind in ("mcnemar", "margin"):
        p = [getattr(stats[name], f"p_{kind}") for name in known]
        for short, method in (("holm", "holm"), ("bh", "fdr_bh")):
            for name, value in zip(known, adjust(p, method)):
                stats[name] = dataclasses.replace(stats[name], **{f"p_{kind}_{short}": float(value)})
    return stats


def majority(found: Outcomes, items: Items) -> float:
    """Accuracy of always giving the commonest answer: of a kind of question where replies name it, else the letter."""
    answers = items.contents if found.worded else items.labels
    groups = items.categories if found.worded else np.zeros(len(answers))
    most = [max(np.unique(answers[groups == g].astype(str), return_counts=True)[1]) for g in np.unique(groups)]
    return float(sum(most) / len(answers))


def floor(found: Outcomes, items: Items) -> float:
    """Accuracy that needs neither latent nor picture: the better of chance and always the commonest answer."""
    return max(float((1 / items.options).mean()), majority(found, items))


def role(name: str) -> str | None:
    """What a condition shows in a verdict; None for those that do not enter it."""
    for names, shows in ((corruptions.HIDES, HIDES), (corruptions.LISTENS, LISTENS), (corruptions.REMOVED, FORMAT)):
        if name in names:
            return shows
    return CARRIES if corruptions.is_content(name) else None


def verdict(found: Outcomes, floor: float, *, level: float, draws: int, seed: int) -> Verdict | None:
    """Over the items whose clean pass fed latents; None without two of them or a condition on the latents' content."""
    if found.triggered.sum() < 2:
        return None
    part = found.select(found.triggered)
    roles = {name: shows for c, name in enumerate(found.conditions)
             if c and (shows := role(name)) and (~part.missing[c]).sum() >= 2}  # fmt: skip
    if not {CARRIES, LISTENS} & set(roles.values()):
        return None
    rows = [found.at(name) for name in roles]
    there = lambda right: np.where(part.missing[rows], np.nan, right[rows])  # noqa: E731
    letters = (part.letter_right[0], there(part.letter_right)) if found.worded else None
    return two_verdicts(
        part.right[0], there(part.right), names=list(roles), roles=roles, floor=floor, letters=letters, level=level,
        draws=draws, seed=seed,
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
