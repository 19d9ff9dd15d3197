"""Are the latents load-bearing? One verdict from all paired tests of a corruption sweep, with what n cannot show."""

from dataclasses import dataclass

import numpy as np

from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval
from lvr_jax.prism.statistics.paired import adjust, paired_t_pvalue
from lvr_jax.prism.statistics.power import exact_mcnemar, minimum_detectable_effect

# Shares of the clean run's edge over chance. Below NEGLIGIBLE a loss is not worth a name even where it is significant;
# from MOST on, little but chance is left. An unfound loss is excluded only if its interval ends below OVERLOOKED.
NEGLIGIBLE, OVERLOOKED, MOST = 0.05, 0.25, 0.75
# The part of the error rate spent on margins: they see small effects, and exact McNemar leaves most of its part unused.
MARGIN_WEIGHT = 0.9
_PARTS = ("point", "low", "high")


@dataclass(frozen=True)
class Verdict:
    """kind: load-bearing | partly | ignored | harmful | undecided, and how it came about.

    share: part of the clean edge over chance that the most telling condition destroys (negative: corruption helps),
    by `measure` (accuracy or margin); p is that condition's p, Holm-adjusted over the conditions. sure: the
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
    """The verdict from right/wrong clean [I] and conditions [C, I], and margins likewise (None: answers alone).

    chance: accuracy without any information, a number or one per item (1 / options). A condition is tested by a paired
    t on the margins and exact McNemar on the answers (weighted Bonferroni, MARGIN_WEIGHT to the margins), and Holm goes
    over conditions: without any effect, some condition is found with a probability just below 1 - level.
    Raises ValueError on shapes that disagree.
    """
    clean, conditions = np.asarray(clean, float), np.asarray(conditions, float)
    n, chance = len(clean), np.broadcast_to(np.asarray(chance, float), clean.shape)
    if conditions.shape != (len(names), n) or len(names) == 0:
        raise ValueError(f"conditions {conditions.shape}; expected [{len(names)} names, {n} items], at least one name")
    weights = intervals.item_weights(n, draws, seed)
    lost, gained = ((clean - conditions) > 0).sum(1), ((conditions - clean) > 0).sum(1)
    smallest = minimum_detectable_effect(n, float(np.minimum(lost, gained).max() / n), (1 - level) / len(names))
    p_answers = exact_mcnemar(gained, lost)
    accuracy = _lost_share(clean - chance, clean - conditions, weights, level)
    if margins is None:
        p, share, by_margin = p_answers, accuracy, np.zeros(len(names), bool)
    else:
        clean_margin, margins = np.asarray(clean_margin, float), np.asarray(margins, float)
        p_margins = paired_t_pvalue(margins - clean_margin)
        # A condition without margins (the model stopped answering) still has its answers.
        p_margins = np.where(np.isnan(p_margins), 1.0, p_margins)
        p = np.minimum(1, np.minimum(p_margins / MARGIN_WEIGHT, p_answers / (1 - MARGIN_WEIGHT)))
        margin = _lost_share(clean_margin, clean_margin - margins, weights, level)
        # Answers say more than margins wherever they moved at all.
        by_margin = ~((accuracy.low > 0) | (accuracy.high < 0)) & np.isfinite(margin.point)
        share = Interval(*(np.where(by_margin, getattr(margin, f), getattr(accuracy, f)) for f in _PARTS))
    p = adjust(p, "holm")
    found = p <= 1 - level
    c = _most_telling(found, share, accuracy)
    by = "margin" if found[c] and by_margin[c] else "accuracy"
    told = Interval(*(float(getattr(share if by == "margin" else accuracy, part)[c]) for part in _PARTS))

    no_edge = bool(intervals.item_bootstrap(clean - chance, weights, level).low <= 0)
    kinds = [_kind(s, bool(found[c]), by, told.high) for s in (told.point, told.low, told.high)]
    kind = "undecided" if no_edge else kinds[0]
    sure = not no_edge and len(set(kinds)) == 1
    text = _sentence(kind, names[c], by, told, float(p[c]), sure, n, smallest, no_edge)
    return Verdict(kind, names[c], by, told, float(p[c]), sure, n, smallest, text)


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


def _most_telling(found, share, accuracy):
    """The condition with the largest effect among those found: the largest loss, or the largest gain if none loses.

    Where nothing was found: the condition whose loss of accuracy could be the largest.
    """
    if not found.any():
        return int(np.argmax(np.where(np.isnan(accuracy.high), -np.inf, accuracy.high)))
    size = np.where(found & np.isfinite(share.point), share.point, 0)
    return int(np.argmax(size) if size.max() > 0 else np.argmax(np.where(found, -size, -np.inf)))


def _kind(share, found, by, high):
    if not found:
        return "ignored" if high < OVERLOOKED else "undecided"
    if np.isnan(share):
        return "undecided"
    if share >= MOST and by == "accuracy":
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
    if no_edge:
        text = "undecided: the clean run itself is not above chance, so there is nothing to lose"
    text = f"{text[0].upper()}{text[1:]} (Holm p = {p:.2g}, n = {n})."
    if not sure:
        text += " The interval reaches into another verdict: more items are needed to be sure."
    return text + f" With {n} items a loss of accuracy below {100 * smallest:.1f} points would usually go unnoticed."
