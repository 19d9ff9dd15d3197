"""Compares two runs on the very same items.

Two result files are paired by item id. The test is McNemar's exact test on the items that flipped; the interval of the
difference is a bootstrap over whole units (an MMVP pair, the option orders of a question), paired by construction.
When the items come in groups, McNemar's test treats them as independent: the interval is then the one to trust.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from lvr_jax.evaluation import protocol as protocols
from lvr_jax.evaluation.results import Results
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.scoring import Mark, units


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the paired table; "lost" is right in A and wrong in B. Shares and difference (B - A) in 0..1."""

    category: str
    items: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    p_value: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All items first, then each category; `caveats` say in what else the runs differ."""

    a: str
    b: str
    lines: tuple[Line, ...]
    caveats: tuple[str, ...]

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Plain text, percentages and percentage points."""
        width = max(len(line.category or "all") for line in self.lines)
        rows = [f"A {self.a}", f"B {self.b}", *(f"note: {caveat}" for caveat in self.caveats), "",
                f"{'':{width}}  items      A      B    B-A           95 %  lost  gained       p"]
        for line in self.lines:
            interval = f"{100 * line.low:+.1f} .. {100 * line.high:+.1f}"
            rows.append(f"{line.category or 'all':{width}}  {line.items:5d}  {100 * line.a:5.1f}  {100 * line.b:5.1f}"
                        f"  {100 * line.difference:+5.1f}  {interval:>13}  {len(line.lost):4d}  {len(line.gained):6d}"
                        f"  {line.p_value:6.4f}")
        return "\n".join(rows)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p: were flips in both directions equally likely? 1.0 where nothing flipped."""
    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def compare(a: Results, b: Results, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Comparison:
    """The paired table of two result files; refuses files that do not hold the same items."""
    one, two = a.header, b.header
    if one.benchmark != two.benchmark:
        raise BenchmarkError(f"{b.path}: benchmark is {two.benchmark!r}, expected {one.benchmark!r} as in {a.path}")
    first, second = ({each.id: each for each in results.items} for results in (a, b))
    if not first:
        raise BenchmarkError(f"{a.path}: no items to compare")
    for path, odd in ((a.path, set(first) - set(second)), (b.path, set(second) - set(first))):
        if odd:
            raise BenchmarkError(f"{path}: {len(odd)} items that the other file lacks ({', '.join(sorted(odd)[:3])}),"
                                 " expected the same items in both (finish or cut one of the runs)")
    for key, item in first.items():
        for field in ("letter", "category", "group", "answer"):
            if getattr(item, field) != getattr(second[key], field):
                raise BenchmarkError(f"{b.path}: item {key}: {field} is {getattr(second[key], field)!r}, expected"
                                     f" {getattr(item, field)!r} as in {a.path} (another answer key or copy?)")
    marks = a.marks()
    categories: dict[str, list[Mark]] = collections.defaultdict(list)
    for each in marks:
        categories[each.category].append(each)
    right = {key: item.correct for key, item in second.items()}
    parts = [("", marks), *(categories.items() if len(categories) > 1 else ())]
    lines = [_line(category, part, right, level, resamples, seed) for category, part in parts]
    caveats = [f"protocols differ in {key}: {x!r} against {y!r}"
               for key, (x, y) in protocols.differences(one.protocol, two.protocol).items()]
    grouped = len(units(marks)) < len(marks)
    caveats += ["items come in groups: p treats them as independent, the interval does not"] if grouped else []
    return Comparison(_label(a), _label(b), tuple(lines), tuple(caveats))


def _label(results: Results) -> str:
    header = results.header
    return f"{header.checkpoint} [{header.condition}; {header.protocol.name}]"


def _line(category: str, marks: Sequence[Mark], right: dict[str, bool], level: float, resamples: int,
          seed: int) -> Line:
    lost = tuple(each.id for each in marks if each.correct and not right[each.id])
    gained = tuple(each.id for each in marks if not each.correct and right[each.id])
    sampled = units(marks)
    change = np.array([sum(right[each.id] - each.correct for each in members) for members in sampled])
    sizes = np.array([len(members) for members in sampled])
    drawn = np.random.default_rng(seed).multinomial(len(sampled), np.full(len(sampled), 1 / len(sampled)), resamples)
    low, high = np.quantile(drawn @ change / (drawn @ sizes), [(1 - level) / 2, (1 + level) / 2])
    a = sum(each.correct for each in marks) / len(marks)
    b = sum(right[each.id] for each in marks) / len(marks)
    return Line(category, len(marks), a, b, b - a, float(low), float(high), lost, gained,
                mcnemar(len(lost), len(gained)))
