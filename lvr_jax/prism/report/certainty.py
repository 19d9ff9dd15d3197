"""How sure a correlation over a handful of checkpoints is: intervals, clusters, and what hangs on a single one."""

from collections.abc import Mapping, Sequence

import numpy as np

from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.report.paper import Paper
from lvr_jax.prism.report.tables import COLUMNS, HEADS, NOTHING, Table, number
from lvr_jax.prism.statistics.across_variants import cluster_correlation, correlation
from lvr_jax.prism.statistics.correlation_intervals import (
    binomial_bootstrap,
    binomial_covariance,
    calibrated_interval,
    fisher,
    item_bootstrap,
    item_covariance,
)
from lvr_jax.prism.statistics.intervals import Interval

# What is correlated with what: a diagnostic that is known per checkpoint with a rate over items.
PAIRS = (("cosine", "vstar"), ("cosine", "letter"), ("gap", "noise_0.1"), ("gap", "truncate"))


def table(analyses: Sequence[Mapping], paper: Paper) -> Table:
    """The table of correlations with their intervals, for this run and the paper."""
    rows, worded = [], any(a["clean"]["worded"] for a in analyses)
    for x, y in PAIRS:
        if y != "letter":                       # letters are all that the paper has
            rows += [*_run(analyses, x, y), *_published(paper, x, y)]
        elif worded:
            rows += _run(analyses, x, y)
    return Table(
        "certainty", "How sure are these correlations?",
        "r over checkpoints with three 95 % intervals. Other items, the same checkpoints: resampled items (the paper "
        "resamples binomially), which is too narrow for so few checkpoints, and one that is calibrated by simulation "
        "and covers 95 %; [−1, 1]: the checkpoints differ by no more than chance, so r says nothing. Other variants "
        "(Fisher): what r says of variants that were not trained. Then r without each checkpoint in turn, and r among "
        "those with one stage of latents alone: where the stages make two clusters, r says little but that they "
        "differ. Of variants with several seeds, the first: other seeds are not in any of these.",
        ("x", "y", "whose", "n", "r", "other items, resampled", "other items, calibrated", "other variants",
         "without one", "within one stage"), tuple(rows),
    )  # fmt: skip


def _run(analyses: Sequence[Mapping], x: str, y: str) -> list[tuple[str, ...]]:
    head = (HEADS[x], HEADS[y], "this run", str(len(analyses)))
    xs = [COLUMNS[x](a) for a in analyses]
    per_item = [_per_item(a, y) for a in analyses]
    if len(analyses) < 3 or any(v is None for v in (*xs, *per_item)):
        return [(*head, *[NOTHING] * 6)]
    items = np.array(per_item)                                                           # [V, I]
    single = [len(a["latents"]) == 1 for a in analyses]
    return [_row(head, xs, items.mean(1), lambda: item_bootstrap(xs, items), item_covariance(xs, items), single)]


def _per_item(a: Mapping, y: str) -> np.ndarray | None:
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
    single = [v in paper.raw["clusters"]["single_stage"] for v in paper.variants]
    if y != "vstar":
        found = correlation(xs, ys)
        return [(*head, number(found.pearson, 2, sign=True), NOTHING, NOTHING, bracket(fisher(found.pearson, len(xs))),
                 _without(found), _within(xs, ys, single))]  # fmt: skip
    n = paper.raw["benchmarks"]["vstar"]["n"]
    return [_row(head, xs, ys, lambda: binomial_bootstrap(xs, ys, n), binomial_covariance(ys, n), single)]


def _row(head, xs, ys, resampled, covariance, single) -> tuple[str, ...]:
    found = correlation(xs, ys)
    if not np.isfinite(found.pearson):          # one side is constant
        return (*head, *[NOTHING] * 6)
    calibrated = calibrated_interval(xs, ys, covariance)
    return (*head, number(found.pearson, 2, sign=True), bracket(resampled()), bracket(calibrated),
            bracket(fisher(found.pearson, len(xs))), _without(found), _within(xs, ys, single))  # fmt: skip


def _within(xs, ys, single: Sequence[bool]) -> str:
    """r among the checkpoints with one stage of latents, where there are others too."""
    r = cluster_correlation(xs, ys, np.where(single, "single", "staged")).within.get("single", float("nan"))
    return f"{number(r, 2, sign=True)} (n = {sum(single)})" if np.isfinite(r) and not all(single) else NOTHING


def bracket(interval: Interval) -> str:
    """An interval as text, "[+0.12, +0.34]"."""
    return f"[{number(interval.low, 2, sign=True)}, {number(interval.high, 2, sign=True)}]"


def _without(found) -> str:
    low, high = (number(float(end), 2, sign=True) for end in (found.leave_one_out.min(), found.leave_one_out.max()))
    return f"{low} to {high}"
