"""Simultaneous intervals of several paired differences: valid whichever of them is singled out afterwards.

The largest of several effects, reported with the interval of one, is too sure of itself. Here the quantile is that of
the largest standardised deviation over all of them together (max-t), by a multiplier bootstrap that keeps how they go
together: conditions of one sweep are asked the same items.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lvr_jax.prism.statistics.intervals import DRAWS


@dataclass(frozen=True)
class Simultaneous:
    """point, low, high, p [C]; p: two-sided, adjusted over the C differences; critical: standard errors of a half
    interval, never fewer than one difference alone needs."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    critical: float

    @property
    def found(self) -> np.ndarray:
        """[C] bool: the interval excludes no difference."""
        return (self.low > 0) | (self.high < 0)


def simultaneous(differences, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Simultaneous:
    """Means over items of differences [C, I] in -1..1 (NaN: the item is not in that comparison), with intervals.

    Each interval is Bonett and Price's (J. Educ. Behav. Stat. 37:479, 2012: one item lost and one gained more than were
    seen, so that an interval never has length 0) with the max-t quantile. Regime: 100 items or more a comparison.
    Raises ValueError where a comparison has no item.
    """
    d = np.asarray(differences, float)
    there = np.isfinite(d)
    count = there.sum(1)
    if d.ndim != 2 or len(d) == 0 or not count.all():
        raise ValueError(f"simultaneous: differences {d.shape}; expected [comparisons, items], an item in each")
    d = np.where(there, d, 0)
    point = d.sum(1) / count
    centre = d.sum(1) / (count + 2)
    error = np.sqrt(((d**2).sum(1) + 2) / (count + 2) - centre**2) / np.sqrt(count + 2)
    away = np.where(there, d - point[:, None], 0)
    size = np.sqrt((away**2).sum(1))
    unit = away / np.where(size > 0, size, 1)[:, None]
    largest = np.abs(np.random.default_rng(seed).standard_normal((draws, d.shape[1])) @ unit.T).max(1)
    critical = max(float(np.quantile(largest, level)), float(stats.norm.ppf((1 + level) / 2)))
    reached = np.searchsorted(np.sort(largest), np.abs(centre) / error)
    # Where nothing varies no draw reaches anything, and the normal distribution of one difference still holds.
    p = np.maximum((draws - reached + 1) / (draws + 1), 2 * stats.norm.sf(np.abs(centre) / error))
    return Simultaneous(
        point, np.maximum(centre - critical * error, -1), np.minimum(centre + critical * error, 1), p, critical
    )  # fmt: skip
