"""How sure is a correlation over a handful of checkpoints? Intervals, and what hangs on a single one of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.report.paper import Paper
from lvr_jax.prism.report.tables import COLUMNS, HEADS, NOTHING, Table, number
from lvr_jax.prism.statistics.across_variants import correlation
from lvr_jax.prism.statistics.correlation_intervals import (
    binomial_bootstrap,
    binomial_covariance,
    calibrated_interval,
    item_bootstrap,
    item_covariance,
)
from lvr_jax.prism.statistics.intervals import Interval

# What is correlated with what: a diagnostic that is known per checkpoint with a rate over items.
PAIRS = (("cosine", "vstar"), ("cosine", "letter"), ("gap", "noise_0.1"), ("gap", "truncate"))


def table(analyses: Sequence[Mapping], paper: Paper) -> Table:
    rows, worded = [], any(a["clean"]["worded"] for a in analyses)
    for x, y in PAIRS:
        if y != "letter":                       # letters are all that the paper has
            rows += [*_run(analyses, x, y), *_published(paper, x, y)]
        elif worded:
            rows += _run(analyses, x, y)
    return Table(
        "certainty", "How sure are these correlations?",
        "r over checkpoints with two 95 % intervals that take the items as drawn: resampled items (the paper resamples "
        "binomially), which is too narrow for so few checkpoints, and one that is calibrated by simulation and covers "
        "95 %. [−1, 1]: the checkpoints differ by no more than chance, so r says nothing. Last: r without each "
        "checkpoint in turn. Of variants with several seeds, the first: "
        "other seeds are not in any of these.",
        ("x", "y", "whose", "n", "r", "resampled", "calibrated", "without one"), tuple(rows),
    )  # fmt: skip


def _run(analyses: Sequence[Mapping], x: str, y: str) -> list[tuple[str, ...]]:
    head = (HEADS[x], HEADS[y], "this run", str(len(analyses)))
    xs = [COLUMNS[x](a) for a in analyses]
    per_item = [_per_item(a, y) for a in analyses]
    if len(analyses) < 3 or any(v is None for v in (*xs, *per_item)):
        return [(*head, *[NOTHING] * 4)]
    items = np.array(per_item)                                                           # [V, I]
    return [_row(head, xs, items.mean(1), lambda: item_bootstrap(xs, items), item_covariance(xs, items))]


def _per_item(a: Mapping, y: str) -> list[float] | None:
    """[I] what is averaged to y: right or wrong, or the difference that a condition makes."""
    right = lambda name: np.array([float(answer["right"][name]) for answer in a["answers"]])  # noqa: E731
    if y in ("vstar", "letter"):
        key = {"vstar": "right", "letter": "letter_right"}[y]
        return np.array([float(answer[key]["clean"]) for answer in a["answers"]])
    name = next((n for n in corruptions.PAPER[y] if n in a["answers"][0]["right"]), None)
    return None if name is None else right(name) - right("clean")


def _published(paper: Paper, x: str, y: str) -> list[tuple[str, ...]]:
    """The paper prints rates alone, so nothing but accuracies can be resampled."""
    xs, ys = (np.array(paper.columns[name], float) for name in (x, y))
    head = (HEADS[x], HEADS[y], "published", str(len(xs)))
    if y != "vstar":
        found = correlation(xs, ys)
        return [(*head, number(found.pearson, 2, sign=True), NOTHING, NOTHING, _without(found))]
    n = paper.raw["benchmarks"]["vstar"]["n"]
    return [_row(head, xs, ys, lambda: binomial_bootstrap(xs, ys, n), binomial_covariance(ys, n))]


def _row(head, xs, ys, resampled, covariance) -> tuple[str, ...]:
    found = correlation(xs, ys)
    if not np.isfinite(found.pearson):          # one side is constant
        return (*head, *[NOTHING] * 4)
    calibrated = calibrated_interval(xs, ys, covariance)
    return (*head, number(found.pearson, 2, sign=True), bracket(resampled()), bracket(calibrated), _without(found))


def bracket(interval: Interval) -> str:
    return f"[{number(interval.low, 2, sign=True)}, {number(interval.high, 2, sign=True)}]"


def _without(found) -> str:
    low, high = (number(float(end), 2, sign=True) for end in (found.leave_one_out.min(), found.leave_one_out.max()))
    return f"{low} to {high}"
