"""Intervals of a correlation over a handful of variants: bootstraps as published, one that covers, and Fisher's.

V variants, S seeds. All but Fisher's hold the V variants fixed and ask what other items or seeds would have given.
Fisher's takes the variants as drawn, and so is the one that speaks of variants that were not trained.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.across_variants import cluster_correlation, pearson
from lvr_jax.prism.statistics.intervals import Interval


def fisher(r: float, n: int, level: float = 0.95) -> Interval:
    """The interval of r over n variants that are taken as drawn from all that could have been trained (n of 4 or more).

    Regime: both sides about normal over variants; where they come in clusters it is too narrow still.
    """
    if n < 4 or abs(r) >= 1:
        return Interval(r, -1.0, 1.0) if abs(r) < 1 else Interval(r, r, r)
    half = float(stats.norm.ppf((1 + level) / 2)) / np.sqrt(n - 3)
    return Interval(r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)))


def binomial_bootstrap(x, percent, n: int, draws: int = 5000, seed: int = 42, level: float = 0.95) -> Interval:
    """The paper's interval of r: accuracies (in percent, [V]) redrawn as Binomial(n, p), x [V] held fixed.

    Regime: sampling error well below the spread between variants and |r| below about 0.9. Elsewhere it is far from
    nominal, because redrawing adds the sampling noise a second time; `calibrated_interval` repairs that.
    """
    percent = np.asarray(percent, float)
    redrawn = np.random.default_rng(seed).binomial(n, percent / 100, size=(draws, len(percent))) / n * 100
    r = pearson(np.asarray(x, float), redrawn)
    return intervals.percentile(r[np.isfinite(r)], float(pearson(x, percent)), level)


def item_bootstrap(x, correct, weights=None, level: float = 0.95) -> Interval:
    """As binomial_bootstrap, but the same items are redrawn for all variants: correct [V, I]; x [V] or per item [V, I].

    Keeps what items share (a hard item is hard for every variant). Same regime.
    """
    x, correct = np.asarray(x, float), np.asarray(correct, float)
    weights = intervals.item_weights(correct.shape[1]) if weights is None else weights

    def redrawn(v):
        return weights @ v.T / correct.shape[1] if v.ndim == 2 else v

    def whole(v):
        return v.mean(1) if v.ndim == 2 else v

    r = pearson(redrawn(x), redrawn(correct))
    return intervals.percentile(r[np.isfinite(r)], float(pearson(whole(x), whole(correct))), level)


def binomial_covariance(percent, n: int) -> np.ndarray:
    """Sampling covariance [2V, 2V] of (x, y): x known exactly, y accuracies in percent, independent by variant."""
    p = np.asarray(percent, float) / 100
    return np.diag(np.concatenate([np.zeros_like(p), 1e4 * p * (1 - p) / n]))


def item_covariance(x, correct) -> np.ndarray:
    """Sampling covariance [2V, 2V] of the item means of x ([V, I], or [V] known exactly) and correct [V, I]."""
    x, correct = np.asarray(x, float), np.asarray(correct, float)
    per_item = np.concatenate([x if x.ndim == 2 else np.zeros_like(correct), correct])
    return np.cov(per_item) / correct.shape[1]


@dataclass(frozen=True)
class SeedReplicates:
    """r over variant means with its interval; r of seeds inside variants; the part of the variance between variants."""

    between: Interval
    within: float
    between_share_x: float
    between_share_y: float


def seed_replicates(x, y, level: float = 0.95, draws: int = 2000, seed: int = 0) -> SeedReplicates:
    """x, y [V, S]: S training seeds of each variant, S of 2 or more. Seeds, not items, are the unit of chance here.

    `within` is the correlation over seeds of one variant, pooled: a diagnostic that tracks accuracy only between
    variants, not between seeds, may track something else that the variants differ in.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"seed_replicates: shapes {x.shape} and {y.shape}; expected twice [variants, 2 or more seeds]")
    v, s = x.shape
    inside_x, inside_y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    freedom = v * (s - 1)
    pooled = np.array([[(a * b).sum() for b in (inside_x, inside_y)] for a in (inside_x, inside_y)]) / freedom
    covariance = np.kron(pooled / s, np.eye(v))
    names = np.repeat(np.arange(v), s)
    shares = cluster_correlation(x.ravel(), y.ravel(), names)
    return SeedReplicates(
        calibrated_interval(x.mean(1), y.mean(1), covariance, freedom=freedom, level=level, draws=draws, seed=seed),
        float(pearson(inside_x.ravel(), inside_y.ravel())), shares.between_share_x, shares.between_share_y,
    )  # fmt: skip


def calibrated_interval(x, y, covariance, *, freedom=None, level=0.95, draws=2000, seed=0) -> Interval:
    """An interval of r over V variants by inverting a simulated test; it covers where the bootstrap does not.

    For each candidate r the estimates x, y [V] are redrawn with the given sampling covariance [2V, 2V] around points
    that have that r and the spread which is left once the noise is taken out; the interval is every r under which the
    observed one is not in either tail. freedom: degrees of freedom when the covariance is itself an estimate (t
    instead of normal noise). Regime: spread between variants at least that of the noise in both x and y; where it is
    less, the data say nothing about r and the interval is [-1, 1].
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    v = len(x)
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(covariance)
    noise = rng.standard_normal((draws, 2 * v)) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    if freedom is not None:
        noise *= np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    observed = float(pearson(x, y))
    spread_x = _denoised_spread(x, covariance[:v, :v])
    spread_y = _denoised_spread(y, covariance[v:, v:])
    if spread_x == 0 or spread_y == 0:
        return Interval(observed, -1.0, 1.0)
    along = (x - x.mean()) / np.linalg.norm(x - x.mean())
    across = (y - y.mean()) - ((y - y.mean()) @ along) * along
    across = across / max(np.linalg.norm(across), 1e-300)
    redrawn_x = spread_x * along + noise[:, :v]

    def at_least_observed(r):
        redrawn_y = spread_y * (r * along + np.sqrt(1 - r * r) * across) + noise[:, v:]
        return np.mean(pearson(redrawn_x, redrawn_y) >= observed)

    def where_it_reaches(tail, steps=16):
        low, high = -1.0, 1.0
        if at_least_observed(high) < tail:
            return high
        if at_least_observed(low) >= tail:
            return low
        for _ in range(steps):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least_observed(middle) < tail else (low, middle)
        return (low + high) / 2

    tail = (1 - level) / 2
    return Interval(observed, where_it_reaches(tail), where_it_reaches(1 - tail))


def _denoised_spread(values, covariance):
    """Length of the centred values without what noise alone adds to it; 0 where noise explains at least half of it."""
    centring = np.eye(len(values)) - 1 / len(values)
    total = ((values - values.mean()) ** 2).sum()
    noise = np.trace(centring @ covariance)
    return float(np.sqrt(total - noise)) if total > 2 * noise else 0.0
