"""Are the latents load-bearing? One verdict from all paired tests of a corruption sweep, with what n cannot show."""

from dataclasses import dataclass

import numpy as np

from lvr_jax.prism import intervals
from lvr_jax.prism.intervals import Interval
from lvr_jax.prism.paired import adjust, paired_t_pvalue
from lvr_jax.prism.power import exact_mcnemar, minimum_detectable_effect

# Shares of the clean run's edge over chance. Below NEGLIGIBLE a loss is not worth a name even where it is significant;
# from MOST on, little but chance is left. An unfound loss is excluded only if its interval ends below OVERLOOKED.
NEGLIGIBLE, OVERLOOKED, MOST = 0.05, 0.25, 0.75


@dataclass(frozen=True)
class Verdict:
    """kind: load-bearing | partly | ignored | harmful | undecided, and how it came about.

    share: part of the clean edge over chance that the most telling condition destroys (negative: corruption helps),
    by `measure` (accuracy or margin); p is that condition's Holm-adjusted p over all tests of the sweep. sure: the
    whole interval of the share gives the same kind. smallest: the accuracy loss that this n would show with 80 %
    power.
    """

    kind: str
    condition: str
    measure: str
    share: Interval
    p: float
    sure: bool
    n: int
    smallest: float
    sentence: str


def load_bearing_verdict(
    clean, conditions, clean_margin=None, margins=None, *, chance, names, level=0.95, draws=intervals.DRAWS, seed=0
) -> Verdict:
    """The verdict from right/wrong clean [I] and conditions [C, I], and margins likewise (None: accuracy alone).

    chance: accuracy without any information, a number or one per item (1 / options). The tests are exact McNemar on the
    answers and a paired t on the margins, Holm over all of them, so that a false alarm of any kind has probability
    1 - level at most. Raises ValueError on shapes that disagree.
    """
    clean, conditions = np.asarray(clean, float), np.asarray(conditions, float)
    n, chance = len(clean), np.broadcast_to(np.asarray(chance, float), clean.shape)
    if conditions.shape != (len(names), n) or len(names) == 0:
        raise ValueError(f"conditions {conditions.shape}; expected [{len(names)} names, {n} items], at least one name")
    weights = intervals.item_weights(n, draws, seed)
    accuracy_share = _lost_share(clean - chance, clean - conditions, weights, level)
    lost, gained = ((clean - conditions) > 0).sum(1), ((conditions - clean) > 0).sum(1)
    smallest = minimum_detectable_effect(n, float(np.minimum(lost, gained).max() / n), (1 - level) / len(names))

    p = [exact_mcnemar(gained, lost)]
    shares = [accuracy_share]
    if margins is not None:
        moved = np.asarray(margins, float) - np.asarray(clean_margin, float)
        p.append(paired_t_pvalue(moved))
        shares.append(_lost_share(np.asarray(clean_margin, float), -moved, weights, level))
    p = adjust(np.concatenate(p), "holm").reshape(len(p), -1)                             # [measures, C]
    measure, c = _most_telling(p <= 1 - level, shares)
    share = Interval(*(float(part[c]) for part in (shares[measure].point, shares[measure].low, shares[measure].high)))
    found = bool(p[measure, c] <= 1 - level)

    edge = intervals.item_bootstrap(clean - chance, weights, level)
    kinds = [_kind(s, found, measure, share.high) for s in (share.point, share.low, share.high)]
    no_edge = bool(edge.low <= 0)
    kind = "undecided" if no_edge else kinds[0]
    sure = not no_edge and len(set(kinds)) == 1
    by = ("accuracy", "margin")[measure]
    return Verdict(
        kind, names[c], by, share, float(p[measure, c]), sure, n, smallest,
        _sentence(kind, names[c], by, share, float(p[measure, c]), sure, n, smallest, no_edge),
    )  # fmt: skip


def _lost_share(edge, loss, weights, level):
    """Mean loss [C, I] over mean edge [I], with the paired percentile interval of the ratio. NaN: item left out."""
    there = np.isfinite(loss) & np.isfinite(edge)
    base = weights @ np.where(there, edge, 0).T                                           # [draws, C]
    resampled = (weights @ np.where(there, loss, 0).T) / np.where(base <= 0, np.nan, base)
    whole = np.where(there, edge, 0).sum(1)
    point = np.where(there, loss, 0).sum(1) / np.where(whole <= 0, np.nan, whole)         # no edge, no share of it
    tail = (1 - level) / 2
    # A resample without any edge could have lost all of it; as infinity it can only widen the interval upwards.
    resampled = np.where(np.isnan(resampled), np.inf, resampled)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return Interval(point, low, high)


def _most_telling(found, shares):
    """(measure, condition) of the largest effect among the significant ones; answers before margins, harm before help.

    Where nothing is significant: the condition whose loss of accuracy could be the largest.
    """
    for measure, hits in enumerate(found):
        if hits.any():
            size = np.where(hits, shares[measure].point, -np.inf)
            if size.max() <= 0:
                size = np.where(hits, -shares[measure].point, -np.inf)
            return measure, int(np.nanargmax(size))
    return 0, int(np.nanargmax(np.where(np.isnan(shares[0].high), -np.inf, shares[0].high)))


def _kind(share, found, measure, high):
    if not found:
        return "ignored" if high < OVERLOOKED else "undecided"
    if np.isnan(share):
        return "undecided"
    if share >= MOST and measure == 0:
        return "load-bearing"
    if share >= NEGLIGIBLE:
        return "partly"
    return "harmful" if share <= -NEGLIGIBLE else "ignored"


_MEANING = {
    "load-bearing": "the latents are load-bearing: '{condition}' removes {share} of the {measure}'s edge over chance",
    "partly": "the latents are partly used: '{condition}' removes {share} of the {measure}'s edge over chance",
    "ignored": "the latents are ignored: '{condition}' removes {share} of the {measure}'s edge over chance",
    "harmful": "the latents matter, but do harm: '{condition}' adds {gain} to the {measure}'s edge over chance",
    "undecided": "undecided: '{condition}' removes {share} of the {measure}'s edge over chance",
}


def _sentence(kind, condition, measure, share, p, sure, n, smallest, no_edge):
    text = _MEANING[kind].format(
        condition=condition,
        measure=measure,
        share=f"{share.point:.0%} ({share.low:.0%} to {share.high:.0%})",
        gain=f"{-share.point:.0%} ({-share.high:.0%} to {-share.low:.0%})",
    )
    text = f"{text[0].upper()}{text[1:]} (Holm p = {p:.2g}, n = {n})."
    if no_edge:
        text += " The clean run itself is not above chance, so there is nothing to lose."
    if not sure:
        text += " The interval reaches into another verdict: more items are needed to be sure."
    return text + f" With {n} items a loss of accuracy below {100 * smallest:.1f} points would usually go unnoticed."
