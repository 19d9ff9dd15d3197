"""Compares every condition with the clean run, item by item."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval
from lvr_jax.prism.statistics.power import exact_mcnemar, minimum_detectable_effect


@dataclass(frozen=True)
class ConditionEffect:
    """One condition against clean on the same n items; accuracies and deltas are shares of 1, negative delta = harm.

    gained: items wrong when clean and right here; lost: the reverse. delta_interval is Tango's, delta_bootstrap the
    paired item bootstrap. p_* are two-sided; *_holm and *_bh are adjusted over the conditions of the call.
    minimum_effect: the smallest loss that n items would show with 80 % power, at the churn seen here.
    margin fields use the margin_items items that have a margin in both runs (NaN fields if fewer than two).
    """

    name: str
    n: int
    clean_accuracy: float
    accuracy: Interval
    delta: float
    delta_interval: Interval
    delta_bootstrap: Interval
    gained: int
    lost: int
    p_mcnemar: float
    p_mcnemar_holm: float
    p_mcnemar_bh: float
    minimum_effect: float
    margin_items: int
    margin_delta: Interval
    p_margin: float
    p_margin_holm: float
    p_margin_bh: float


def adjust(p, method: str) -> np.ndarray:
    """Adjusted p-values over all finite entries; NaN (no test possible) stays NaN. method: 'holm' or 'fdr_bh'."""
    p = np.asarray(p, float)
    adjusted = np.full_like(p, np.nan)
    known = np.isfinite(p)
    adjusted[known] = _ADJUST[method](p[known])
    return adjusted


def _holm(p):
    # Not statsmodels' multipletests: it runs a full garbage collection at every call, 70 ms that simulations multiply.
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


_ADJUST = {"holm": _holm, "fdr_bh": lambda p: stats.false_discovery_control(p) if len(p) else p}


def paired_t_pvalue(differences) -> np.ndarray:
    """Two-sided p of mean zero for differences [C, I] with NaN gaps: 1 where none moved, NaN below two items."""
    differences = np.asarray(differences, float)
    there = np.isfinite(differences)
    low = np.min(differences, axis=1, where=there, initial=np.inf)
    high = np.max(differences, axis=1, where=there, initial=-np.inf)
    # Identical shifts leave no spread for a t value: nothing moved, or everything moved alike.
    p = np.where(low == 0, 1.0, 0.0)
    varied = (high > low) & (there.sum(1) > 1)
    if varied.any():
        p[varied] = stats.ttest_1samp(differences[varied], 0.0, axis=1, nan_policy="omit").pvalue
    return np.where(there.sum(1) > 1, p, np.nan)


def compare_conditions(
    clean, conditions, clean_margin=None, margins=None, *, names, level=0.95, draws=intervals.DRAWS, seed=0
) -> list[ConditionEffect]:
    """Paired comparison of conditions [C, I] (right or wrong) with clean [I]; margins likewise, or None.

    A margin is the logit of the right letter minus the largest other letter's; NaN where an item has none. All
    conditions share the same resamples. Raises ValueError when the shapes disagree.
    """
    clean, conditions = _truth(clean, "clean"), _truth(conditions, "conditions")
    n = len(clean)
    if conditions.ndim != 2 or conditions.shape != (len(names), n) or n == 0:
        raise ValueError(f"conditions {conditions.shape}; expected [{len(names)} names, {n} items], at least one item")
    if margins is None:
        clean_margin, margins = np.full(n, np.nan), np.full(conditions.shape, np.nan)
    moved = np.asarray(margins, float) - np.asarray(clean_margin, float)
    if moved.shape != conditions.shape:
        raise ValueError(f"margins {moved.shape}; expected the shape of conditions, {conditions.shape}")

    gained = (conditions & ~clean).sum(1)
    lost = (~conditions & clean).sum(1)
    weights = intervals.item_weights(n, draws, seed)
    accuracy = intervals.wilson(conditions.sum(1), n, level)
    delta = intervals.tango(gained, lost, n, level)
    delta_bootstrap = intervals.item_bootstrap(conditions.astype(float) - clean, weights, level)
    p_mcnemar, p_margin = exact_mcnemar(gained, lost), paired_t_pvalue(moved)
    margin = _margin_intervals(moved, weights, level)
    adjusted = {(kind, method): adjust(p, method) for kind, p in (("mcnemar", p_mcnemar), ("margin", p_margin))
                for method in ("holm", "fdr_bh")}  # fmt: skip
    return [
        ConditionEffect(
            name=name, n=n, clean_accuracy=float(clean.mean()), accuracy=_at(accuracy, c), delta=float(delta.point[c]),
            delta_interval=_at(delta, c), delta_bootstrap=_at(delta_bootstrap, c),
            gained=int(gained[c]), lost=int(lost[c]), p_mcnemar=float(p_mcnemar[c]),
            p_mcnemar_holm=float(adjusted["mcnemar", "holm"][c]), p_mcnemar_bh=float(adjusted["mcnemar", "fdr_bh"][c]),
            minimum_effect=minimum_detectable_effect(n, min(gained[c], lost[c]) / n, 1 - level),
            margin_items=int(np.isfinite(moved[c]).sum()), margin_delta=margin[c], p_margin=float(p_margin[c]),
            p_margin_holm=float(adjusted["margin", "holm"][c]), p_margin_bh=float(adjusted["margin", "fdr_bh"][c]),
        )
        for c, name in enumerate(names)
    ]  # fmt: skip


def _truth(values, name):
    values = np.asarray(values)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name}: values other than right (1) and wrong (0)")
    return values.astype(bool)


def _margin_intervals(moved, weights, level):
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    rows = []
    for row in moved:
        there = np.isfinite(row)
        if there.sum() < 2:
            rows.append(nothing)
            continue
        # Resamples that drew no item with a margin say nothing about the mean.
        drawn = weights[weights[:, there].sum(1) > 0]
        rows.append(_at(intervals.item_bootstrap(row[None], drawn, level), 0))
    return rows


def _at(interval, c):
    return Interval(float(interval.point[c]), float(interval.low[c]), float(interval.high[c]))
