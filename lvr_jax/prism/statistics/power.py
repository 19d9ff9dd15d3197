"""What so many items could show at all: exact McNemar p-values, their power, and the smallest effect they find."""

from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats


def exact_mcnemar(gained, lost) -> np.ndarray:
    """Two-sided exact p of the paired test on the items that flipped: arrays of counts in, an array of p out."""
    gained, lost = np.broadcast_arrays(np.asarray(gained), np.asarray(lost))
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))


def mcnemar_power(n: int, lost_rate: float, gained_rate: float, alpha: float = 0.05) -> float:
    """Probability that the exact test on n items has p <= alpha when items flip at these two rates; no simulation."""
    flip_rate = lost_rate + gained_rate
    if flip_rate == 0:
        return 0.0
    flips, critical = _critical(n, alpha)
    can, share = critical >= 0, lost_rate / flip_rate
    flips, critical = flips[can], critical[can]
    rejects = special.bdtr(critical, flips, share) + special.bdtr(critical, flips, 1 - share)
    return float(stats.binom.pmf(flips, n, flip_rate) @ rejects)


@lru_cache(maxsize=64)
def _critical(n, alpha):
    """For each number of flips, the largest count on the rarer side that still rejects; -1 where none does."""
    flips = np.arange(n + 1)
    critical = stats.binom.ppf(alpha / 2, flips, 0.5)
    return flips, np.where(2 * stats.binom.cdf(critical, flips, 0.5) <= alpha, critical, critical - 1)


def minimum_detectable_effect(n: int, churn: float = 0.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest loss of accuracy that the exact test finds with this power, NaN if none.

    churn is the rate at which items flip in *both* directions without any effect; with churn 0 every flip is a loss,
    the most favourable case.
    """
    if not 0 <= churn < 0.5:
        raise ValueError(f"minimum_detectable_effect: churn {churn}; expected a rate from 0 up to 0.5")

    def shortfall(effect):
        return mcnemar_power(n, churn + effect, churn, alpha) - power

    largest = 1 - 2 * churn
    return float(optimize.brentq(shortfall, 0.0, largest, xtol=1e-6)) if shortfall(largest) > 0 else float("nan")
