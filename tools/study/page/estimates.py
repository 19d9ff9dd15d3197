"""Estimates of the quantities that predictions are about, over checkpoints with seeds as units."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lvr_jax.prism.statistics import nested
from lvr_jax.prism.statistics.intervals import Interval
from study.page.findings import Checkpoint, pairs

Estimate = Callable[[float], Interval | None]


def estimate(prediction: Mapping[str, Any], where: Sequence[Checkpoint], against: Sequence[Checkpoint]) -> Estimate:
    """level -> interval of a prediction's quantity (tools/study/blocks.py lists them); None with too few checkpoints.

    where, against: the checkpoints that it chooses
    """
    p = prediction
    return {
        "mean": lambda level: nested.mean(_values(where, p["of"]), level),
        "difference": lambda level: nested.mean(_by_seed(where, against, p["of"]), level),
        "correlation": lambda level: _correlation(where, p["x"], p["of"], level),
        "within": lambda level: _within(where, p["x"], p["of"], p["by"], level),
        "carried": lambda level: _carried(where, p["of"], level),
    }[p["quantity"]]


def counted(prediction: Mapping[str, Any], where: Sequence[Checkpoint], against: Sequence[Checkpoint]) -> int:
    """How many units the estimate rests on: pairs of seeds of a difference, else checkpoints."""
    p = prediction
    if p["quantity"] == "difference":
        return len(_by_seed(where, against, p["of"]))
    sides = [p[side] for side in ("x", "of") if side in p]
    return sum(all(c.measure(side) is not None for side in sides) for c in where)


def in_words(prediction: Mapping[str, Any]) -> str:
    """The quantity as a short phrase."""
    p = prediction
    return {
        "mean": "mean of {of}", "difference": "difference of {of}, by seed", "correlation": "r of {x} and {of}",
        "within": "r of {x} and {of} inside each {by}", "carried": "slope on accuracy of {of}",
    }[p["quantity"]].format(**{side: _named(str(p.get(side))) for side in ("of", "x", "by")})


def _named(measure: str) -> str:
    known = {"blind": "blind accuracy", "through": "accuracy less blind accuracy",
             "follows donor_directed": "answers turned to the donor's"}  # fmt: skip
    return known.get(measure, measure.replace("delta ", "change by ").replace("_", " "))


def _values(checkpoints: Sequence[Checkpoint], measure: str) -> list[float]:
    return [value for value in (c.measure(measure) for c in checkpoints) if value is not None]


def _by_seed(where: Sequence[Checkpoint], against: Sequence[Checkpoint], measure: str) -> list[float]:
    """Differences of means, seed by seed, of the seeds that both sides have."""
    found = []
    for seed in sorted({c.seed for c in where} & {c.seed for c in against}):
        one, other = (_values([c for c in side if c.seed == seed], measure) for side in (where, against))
        if one and other:
            found.append(float(np.mean(one) - np.mean(other)))
    return found


def _correlation(checkpoints: Sequence[Checkpoint], x: str, y: str, level: float) -> Interval | None:
    there = pairs(checkpoints, x, y)
    x_values, y_values = _columns(there)
    return nested.correlations(x_values, y_values, ["all"] * len(there), level).each["all"] if there else None


def _within(checkpoints: Sequence[Checkpoint], x: str, y: str, by: str, level: float) -> Interval | None:
    there = pairs(checkpoints, x, y)
    groups = [str(c.axes[by]) for c, _, _ in there]
    x_values, y_values = _columns(there)
    return nested.correlations(x_values, y_values, groups, level).within if there else None


def _carried(checkpoints: Sequence[Checkpoint], part: str, level: float) -> Interval | None:
    there = pairs(checkpoints, "accuracy", part)
    x_values, y_values = _columns(there)
    return nested.slope(x_values, y_values, level) if there else None


def _columns(there: Sequence[tuple[Checkpoint, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for _, a, _ in there]), np.array([b for _, _, b in there])

