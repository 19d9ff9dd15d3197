"""Means and spread over the training seeds of each variant, and correlations whose unit of chance is the seed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lvr_jax.prism.report.certainty import PAIRS, bracket
from lvr_jax.prism.report.setting_comparison import INTERVENTIONS, stats_of
from lvr_jax.prism.report.tables import COLUMNS, HEADS, NOTHING, Table, cosine, number
from lvr_jax.prism.statistics.correlation_intervals import seed_replicates


def first_seeds(variants: Sequence[str]) -> list[int]:
    """Indices of the checkpoints that represent their variants where only one each is shown: the first ones."""
    return [n for n, variant in enumerate(variants) if variant not in variants[:n]]


def spread(analyses: Sequence[Mapping], variants: Sequence[str]) -> Table:
    """One row a variant: means over its seeds, with the standard deviation between them."""
    shown = {
        "accuracy": (lambda a: 100 * a["clean"]["accuracy"]["point"], 1, False),
        "cosine, taught": (cosine, 3, False),
        "cosine, free": (lambda a: cosine(a, "free_running"), 3, False),
        **{label: (_moved(name), 1, True) for name, label in INTERVENTIONS.items()},
    }
    rows = []
    for variant in dict.fromkeys(variants):
        own = [a for a, each in zip(analyses, variants) if each == variant]
        cells = [_mean([read(a) for a in own], digits, sign) for read, digits, sign in shown.values()]
        kinds = Counter(a["verdict"]["kind"] if a["verdict"] else "no verdict" for a in own)
        rows.append((variant, str(len(own)), *cells, ", ".join(f"{kind} {n}" for kind, n in kinds.items())))
    return Table(
        "seeds", "Over training seeds",
        "Mean ± standard deviation over the seeds of a variant; interventions in points against the clean run of the "
        "same seed. The deviation is of single runs: what another seed may give. Last: how many seeds had which "
        "verdict.",
        ("variant", "seeds", *shown, "verdicts"), tuple(rows), words=("verdicts",),
    )  # fmt: skip


def correlations(analyses: Sequence[Mapping], variants: Sequence[str]) -> Table:
    """Between the variants' means, and within variants over seeds."""
    rows = []
    for x, y in PAIRS:
        head, places = (HEADS[x], HEADS[y]), list(dict.fromkeys(variants))
        by = [[(COLUMNS[x](a), COLUMNS[y](a)) for a, v in zip(analyses, variants) if v == name] for name in places]
        seeds = {len(part) for part in by}
        lacking = any(value is None for part in by for each in part for value in each)
        if len(places) < 3 or len(seeds) > 1 or seeds == {1} or lacking:
            rows.append((*head, *[NOTHING] * 6))
            continue
        found = seed_replicates(*np.moveaxis(np.array(by, float), -1, 0))
        rows.append((
            *head, f"{len(places)} × {seeds.pop()}", number(found.between.point, 2, sign=True), bracket(found.between),
            number(found.within, 2, sign=True), number(found.between_share_x, 2), number(found.between_share_y, 2),
        ))  # fmt: skip
    return Table(
        "seed-correlations", "Correlations with seeds as replicates",
        "r over the means of the variants, with a calibrated 95 % interval in which training seeds are what is drawn "
        "([−1, 1]: the variants differ by no more than their seeds do); r over seeds of the same variant, pooled; and "
        "the part of each side's variance that lies between variants. What tracks accuracy between variants and not "
        "within them may track something else that the variants differ in. Needs three variants with as many seeds "
        "each.",
        ("x", "y", "variants × seeds", "r between", "95 % interval", "r within", "between, x", "between, y"),
        tuple(rows),
    )  # fmt: skip


def _moved(name: str) -> Callable[[Mapping], float | None]:
    def read(a: Mapping) -> float | None:
        stats = stats_of(a, name)
        return None if stats is None else 100 * stats["delta"]

    return read


def _mean(values: Sequence[float | None], digits: int, sign: bool) -> str:
    there = [v for v in values if v is not None]
    if not there:
        return NOTHING
    deviation = f" ± {number(float(np.std(there, ddof=1)), digits)}" if len(there) > 1 else ""
    return number(float(np.mean(there)), digits, sign=sign) + deviation
