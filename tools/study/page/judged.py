"""Judges predictions by rule: held, failed or undecided, by an interval of checkpoints and a bound written beforehand.

    held        the whole interval lies within the bounds
    failed      the whole interval lies outside of them
    undecided   it crosses a bound, or there are too few checkpoints for an interval

A prediction's p is one less the highest level at which its interval still decides; Holm's correction over all of them
says which decisions stand when all are taken together.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.prism.statistics.intervals import Interval
from lvr_jax.prism.statistics.paired import adjust

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"
MOST = 1 - 1e-9         # the highest level that is tried


@dataclasses.dataclass(frozen=True)
class Judgement:
    """interval: of the quantity (None: too little to estimate); verdict: by rule; p, holm: of the decision, NaN where
    there is no interval; stands: the verdict once all predictions are corrected together."""

    interval: Interval | None
    low: float
    high: float
    verdict: str
    p: float
    holm: float
    stands: str


def decide(interval: Interval | None, low: float, high: float) -> str:
    """The verdict on one interval."""
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return UNDECIDED
    if low <= interval.low and interval.high <= high:
        return HELD
    return FAILED if interval.high < low or interval.low > high else UNDECIDED


def decision_p(estimate: Callable[[float], Interval | None], low: float, high: float) -> float:
    """One less the highest level at which the interval decides; estimate: level -> interval."""
    if estimate(0.5) is None:
        return float("nan")
    if decide(estimate(MOST), low, high) != UNDECIDED:
        return 1 - MOST
    below, above = 0.0, MOST
    if decide(estimate(1e-9), low, high) == UNDECIDED:
        return 1.0
    for _ in range(40):
        middle = (below + above) / 2
        below, above = (below, middle) if decide(estimate(middle), low, high) == UNDECIDED else (middle, above)
    return 1 - below


def judge(
    estimates: Sequence[Callable[[float], Interval | None]], bounds: Sequence[tuple[float, float]], level: float = 0.95
) -> list[Judgement]:
    """All predictions together: for each an estimate, level -> interval, and its bounds (infinite for none)."""
    p = np.array([decision_p(estimate, *bound) for estimate, bound in zip(estimates, bounds)])
    found = []
    for estimate, (low, high), own, holm in zip(estimates, bounds, p, adjust(p, "holm")):
        interval = estimate(level)
        verdict = decide(interval, low, high)
        stands = verdict if holm <= 1 - level else UNDECIDED
        found.append(Judgement(interval, low, high, verdict, float(own), float(holm), stands))
    return found
