"""Aggregates single verdicts to a benchmark's numbers, each with its interval.

An aggregation takes `Mark`s and returns a share in 0..1; `AGGREGATIONS` names them, `REPORTED` says which ones each
published harness prints for a benchmark. Intervals are Wilson's for a plain share, those of the categories combined for
a macro average, and a bootstrap that resamples what was sampled (questions, pairs, option-order groups) elsewhere.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.evaluation.extraction import extract, open_answer
from lvr_jax.evaluation.prompts import lookup
from lvr_jax.evaluation.rows import BenchmarkError, Row
from lvr_jax.evaluation.wilson import limits


@dataclasses.dataclass(frozen=True)
class Mark:
    """The verdict on one item, with what an aggregation needs of its row."""

    id: str
    correct: bool
    category: str = ""
    group: str = ""
    cycle: str = ""


def judge(row: Row, reply: str, rule: str) -> tuple[str | None, bool]:
    """What the reply was parsed to and whether that is right. Open questions compare normalised texts."""
    parsed: str | None
    if not row.choices:
        parsed = open_answer(reply)
        return parsed, parsed == open_answer(row.answer)
    parsed = extract(rule, reply, row.choices)
    return parsed, parsed == row.letter


def mark(row: Row, correct: bool) -> Mark:
    """The mark of one item: right or wrong, with what aggregations group by."""
    return Mark(row.id, correct, row.category, row.group, row.cycle)


def _groups(marks: Sequence[Mark], key: Callable[[Mark], str]) -> dict[str, list[Mark]]:
    groups: dict[str, list[Mark]] = collections.defaultdict(list)
    for each in marks:
        groups[key(each)].append(each)
    return groups


def _share(marks: Sequence[Mark]) -> float:
    return sum(each.correct for each in marks) / len(marks)


def micro(marks: Sequence[Mark]) -> float:
    """Share of right items. On MMVP this is the "single" accuracy."""
    return _share(marks)


def macro(marks: Sequence[Mark]) -> float:
    """Mean over categories of the share of right items."""
    return float(np.mean([_share(each) for each in _groups(marks, lambda m: m.category).values()]))


def pair(marks: Sequence[Mark]) -> float:
    """Share of groups that are right as a whole; every group must be a pair."""
    groups = _groups(marks, lambda m: m.group)
    for name, members in groups.items():
        if not name or len(members) != 2:
            raise BenchmarkError(f"pair accuracy: {name or 'no group'} has {len(members)} items"
                                 f" ({members[0].id}, ...), expected 2")
    return sum(all(each.correct for each in members) for members in groups.values()) / len(groups)


def cycle_mean(marks: Sequence[Mark]) -> float:
    """Mean over the cyclic option orders of each order's share of right items (HR-Bench)."""
    cycles = _groups(marks, lambda m: m.cycle)
    if "" in cycles:
        raise BenchmarkError(f"cycle mean: item {cycles[''][0].id} has no cycle, expected an option order for each")
    return float(np.mean([_share(each) for each in cycles.values()]))


Aggregation = Callable[[Sequence[Mark]], float]
AGGREGATIONS: dict[str, Aggregation] = {"single": micro, "micro": micro, "macro": macro, "pair": pair,
                                        "cycle_mean": cycle_mean}

# What each harness reports, its headline number first. Ours reports all that make sense.
REPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "lvr": {"mmvp": ("single",), "*": ("micro",)},
    "prism": {"mmvp": ("single",), "*": ("micro",)},
    "clean": {"vstar": ("micro", "macro"), "mmvp": ("single", "pair"), "blink": ("micro", "macro"),
              "hrbench": ("cycle_mean",), "mme_realworld": ("micro", "macro"), "visualpuzzles": ("micro", "macro"),
              "visual_cot": ("micro", "macro"), "*": ("micro",)},
    "vlmevalkit": {"vstar": ("micro",), "mmvp": ("pair", "single"), "blink": ("micro",), "hrbench": ("cycle_mean",),
                   "mme_realworld": ("micro",), "visualpuzzles": ("micro",)},
    "lmms_eval": {"vstar": ("micro",), "mmvp": ("single", "pair"), "blink": ("micro",), "hrbench": ("cycle_mean",),
                  "mme_realworld": ("micro",), "visualpuzzles": ("micro",)},
    "own": {"vstar": ("micro",), "mmvp": ("pair",), "blink": ("macro",), "hrbench": ("cycle_mean",)},
}


def reported(harness: str, family: str) -> tuple[str, ...]:
    """Names of the aggregations that a harness reports for a family of benchmarks."""
    return lookup(REPORTED, harness, family, "aggregation")


def aggregate(name: str, marks: Sequence[Mark]) -> float:
    """One number of many marks. Raises BenchmarkError for an unknown aggregation or no marks."""
    if name not in AGGREGATIONS:
        raise BenchmarkError(f"no aggregation {name!r}, expected one of {', '.join(AGGREGATIONS)}")
    if not marks:
        raise BenchmarkError(f"{name}: no items to aggregate")
    return AGGREGATIONS[name](marks)


# Intervals -----------------------------------------------------------------------------------------------------------

def wilson(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent items."""
    if not 0 <= right <= total or total < 1:
        raise BenchmarkError(f"wilson: {right} right of {total}, expected 0 <= right <= total, total >= 1")
    low, high = limits(right, total, level)
    return float(low), float(high)


def units(marks: Sequence[Mark]) -> list[list[Mark]]:
    """What was sampled: items of one group stand or fall together, an item without a group stands alone."""
    return list(_groups(marks, lambda m: f"group {m.group}" if m.group else f"item {m.id}").values())


def bootstrap(name: str, marks: Sequence[Mark], *, level: float = 0.95, resamples: int = 2000,
              seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of an aggregation; whole units are drawn.

    Where no resample differs, Wilson's interval of that share among so many units. Every unit is reduced to sums first,
    so that a resample is one matrix product and not a pass over the items.
    """
    if name == "macro":
        raise BenchmarkError("macro: its interval is `combined`, expected another aggregation")
    aggregate(name, marks)                                        # refuses what the aggregation refuses
    sampled = units(marks)
    right, total = _unit_sums(name, sampled)                      # [U, cells]
    rng = np.random.default_rng(seed)
    U = len(sampled)
    counts = rng.multinomial(U, np.full(U, 1 / U), size=resamples)    # how often each unit was drawn
    drawn = counts @ total
    with np.errstate(invalid="ignore"):
        shares = np.where(drawn > 0, (counts @ right) / drawn, np.nan)
    # A resample can miss a cell only if units do not cover all cells; such a cell is left out of that mean.
    values = np.nanmean(shares, axis=1)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    if low == high:             # units that are all alike are no certainty about others
        low, high = limits(low * U, U, level)
    return float(low), float(high)


def combined(marks: Sequence[Mark], *, level: float = 0.95, resamples: int = 2000,
             seed: int = 0) -> tuple[float, float]:
    """The interval of a macro average, from those of its categories (Zou and Donner's MOVER; Newcombe 1998).

    The distances of each category's limits from its share add up in squares. Where every item is wrong, or right, it
    has a width, which a bootstrap does not; for one category it is that category's own interval.
    """
    scores = [_score("micro", "", members, level, resamples, seed)
              for members in _groups(marks, lambda m: m.category).values()]
    share, low, high = np.array([[each.value, each.low, each.high] for each in scores]).T       # [categories]
    below, above = (np.sqrt(((limit - share) ** 2).sum()) / len(scores) for limit in (low, high))
    return float(share.mean() - below), float(share.mean() + above)


def _unit_sums(name: str, sampled: Sequence[Sequence[Mark]]) -> tuple[np.ndarray, np.ndarray]:
    """Right and total items of each unit in each cell that the aggregation averages over."""
    if name == "pair":
        whole = [[float(all(each.correct for each in members))] for members in sampled]
        return np.array(whole), np.ones((len(sampled), 1))
    cell_of = (lambda m: m.cycle) if name == "cycle_mean" else (lambda m: "")
    cells = sorted({cell_of(each) for members in sampled for each in members})
    right, total = (np.zeros((len(sampled), len(cells))) for _ in range(2))
    for index, members in enumerate(sampled):
        for each in members:
            right[index, cells.index(cell_of(each))] += each.correct
            total[index, cells.index(cell_of(each))] += 1
    return right, total


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of a report: a share, its interval and how that was made. `items` counts what the share is of."""

    aggregation: str
    category: str
    value: float
    low: float
    high: float
    interval: str
    items: int


def summarise(marks: Sequence[Mark], aggregations: Sequence[str], *, level: float = 0.95, resamples: int = 2000,
              seed: int = 0) -> list[Score]:
    """The named aggregations over everything, then the share of right items in each category.

    Wilson where the share is over independent items or pairs, its combination over categories for a macro average,
    bootstrap elsewhere.
    """
    scores = [_score(name, "", marks, level, resamples, seed) for name in dict.fromkeys(aggregations)]
    categories = _groups(marks, lambda m: m.category)
    if len(categories) > 1:
        scores += [_score("micro", category, members, level, resamples, seed)
                   for category, members in categories.items()]
    return scores


def _score(name: str, category: str, marks: Sequence[Mark], level: float, resamples: int, seed: int) -> Score:
    value = aggregate(name, marks)
    sampled = units(marks)
    independent = name == "pair" or (name in ("single", "micro") and len(sampled) == len(marks))
    if independent:
        right = round(value * len(sampled))
        low, high = wilson(right, len(sampled), level)
        interval = "wilson"
    elif name == "macro":
        low, high = combined(marks, level=level, resamples=resamples, seed=seed)
        interval = "combined"
    else:
        low, high = bootstrap(name, marks, level=level, resamples=resamples, seed=seed)
        interval = "bootstrap"
    return Score(name, category, value, low, high, interval, len(sampled) if name == "pair" else len(marks))
