"""Correlations of a diagnostic over a handful of variants, and how little a handful can show.

V variants. Intervals of r are in correlation_intervals.py.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Correlation:
    """Pearson and Spearman over V variants, with exact permutation p (all V! orders up to 8 variants, else drawn).

    leave_one_out [V] is Pearson's r without each variant: its range says what hangs on a single one.
    """

    n: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float
    leave_one_out: np.ndarray


def pearson(x, y) -> np.ndarray:
    """r over the last axis; leading axes broadcast. NaN where either side is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(size > 0, (x * y).sum(-1) / np.where(size > 0, size, 1), np.nan)


def correlation(x, y, seed: int = 0) -> Correlation:
    """x [V] and y [V]; V of 3 or more."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise ValueError(f"correlation: shapes {x.shape} and {y.shape}; expected two equally long lists of 3 or more")
    keep = ~np.eye(len(x), dtype=bool)
    without = np.array([pearson(x[k], y[k]) for k in keep])
    rank_x, rank_y = stats.rankdata(x), stats.rankdata(y)
    return Correlation(
        len(x), float(pearson(x, y)), _permutation_p(x, y, seed),
        float(pearson(rank_x, rank_y)), _permutation_p(rank_x, rank_y, seed), without,
    )  # fmt: skip


def _permutation_p(x, y, seed, exact_up_to=8, draws=10_000):
    """Share of orders of y whose |r| is at least the observed one: the two-sided p without any assumption."""
    if len(x) <= exact_up_to:
        shuffled = y[np.array(list(permutations(range(len(y)))))]
        extra = 0
    else:
        shuffled = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)
        extra = 1
    # The margin keeps orders that tie with the observed one from being lost to rounding.
    hits = np.abs(pearson(x, shuffled)) >= abs(pearson(x, y)) - 1e-12
    return float((hits.sum() + extra) / (len(hits) + extra))


def partial_correlation(x, y, z) -> float:
    """Pearson of x and y with z held fixed, all [V]."""
    xy, xz, yz = (float(pearson(*pair)) for pair in ((x, y), (x, z), (y, z)))
    return (xy - xz * yz) / float(np.sqrt((1 - xz**2) * (1 - yz**2)))


@dataclass(frozen=True)
class ClusterCorrelation:
    """r inside each cluster (NaN below 3 members), and pooled over clusters after taking out their means."""

    within: dict
    pooled: float
    between_share_x: float
    between_share_y: float


def cluster_correlation(x, y, clusters) -> ClusterCorrelation:
    """x, y [V] and a cluster name each: does r hold inside the clusters, or only say that the clusters differ?

    between_share_*: the part of the variance that lies between the clusters (1: nothing else varies).
    """
    x, y, clusters = np.asarray(x, float), np.asarray(y, float), np.asarray(clusters)
    members = {str(name): clusters == name for name in np.unique(clusters)}
    within = {name: float(pearson(x[m], y[m])) if m.sum() >= 3 else float("nan") for name, m in members.items()}

    def inside(v):
        return v - sum(np.where(m, v[m].mean(), 0) for m in members.values())

    def between_share(v):
        return float(1 - (inside(v) ** 2).sum() / ((v - v.mean()) ** 2).sum())

    return ClusterCorrelation(within, float(pearson(inside(x), inside(y))), between_share(x), between_share(y))
