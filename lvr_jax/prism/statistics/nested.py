"""Relations between two measures of many checkpoints that come in blocks: inside the blocks and between them, apart.

A correlation over all checkpoints together mixes what happens when one thing is varied with how the blocks differ; the
two may even have opposite signs. The unit is a trained checkpoint (a seed), never an item. N checkpoints, K blocks.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas
import statsmodels.formula.api as formulas
from scipy import stats
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from lvr_jax.prism.statistics.across_variants import pearson
from lvr_jax.prism.statistics.correlation_intervals import fisher
from lvr_jax.prism.statistics.intervals import Interval


@dataclass(frozen=True)
class Correlations:
    """Pearson's r with Fisher's interval: of checkpoints about their block's mean, of block means, and in each block.

    None where there are too few: N - K + 1 of 4 or more for within, four blocks for between, four checkpoints for one
    block; nor where one side does not vary.
    """

    checkpoints: int
    blocks: int
    within: Interval | None
    between: Interval | None
    each: dict[str, Interval | None]


def correlations(x, y, block: Sequence[str], level: float = 0.95) -> Correlations:
    """x, y [N] and the block of each."""
    x, y, of = np.asarray(x, float), np.asarray(y, float), np.asarray(block)
    names = list(dict.fromkeys(of.tolist()))
    x_means, y_means = ([values[of == name].mean() for name in names] for values in (x, y))
    return Correlations(
        len(x), len(names), _interval(centred(x, of), centred(y, of), len(x) - len(names) + 1, level),
        _interval(x_means, y_means, len(names), level),
        {str(name): _interval(x[of == name], y[of == name], int((of == name).sum()), level) for name in names},
    )  # fmt: skip


def centred(values, block) -> np.ndarray:
    """Values less the mean of their block."""
    values, block = np.asarray(values, float), np.asarray(block)
    return values - sum(np.where(block == name, values[block == name].mean(), 0.0) for name in np.unique(block))


def _interval(x, y, n: int, level: float) -> Interval | None:
    r = float(pearson(x, y))
    return fisher(r, n, level) if n >= 4 and np.isfinite(r) else None


@dataclass(frozen=True)
class Mixed:
    """y on x inside blocks and between them, with random intercepts of blocks and of the recipes in them (REML).

    within, between: slopes with Wald intervals, on t with degrees of freedom of recipes and of blocks
    p_within: of no slope inside the blocks; converged: the optimiser's word; at_bound: a variance was estimated as 0,
    so that the intervals are those of a simpler model
    """

    within: Interval
    between: Interval | None
    p_within: float
    blocks: int
    converged: bool
    at_bound: bool


def mixed(x, y, block: Sequence[str], recipe: Sequence[str], level: float = 0.95) -> Mixed | None:
    """x, y [N], the block and the recipe of each (checkpoints of one recipe are its seeds); None with fewer than three
    checkpoints more than blocks, or where x does not vary inside any."""
    of, found = np.asarray(block), centred(x, block)
    names = np.unique(of)
    if len(of) < len(names) + 3 or np.allclose(found, 0):
        return None
    data = pandas.DataFrame({"y": np.asarray(y, float), "inside": found, "among": np.asarray(x, float) - found,
                             "block": of.astype(str), "recipe": np.asarray(recipe).astype(str)})  # fmt: skip
    # Two means lie on a line whatever they are, and three say next to nothing.
    apart = len(names) > 3 and not np.allclose(data["among"], data["among"].iloc[0])
    model = formulas.mixedlm("y ~ inside + among" if apart else "y ~ inside", data, groups="block",
                             vc_formula={"recipe": "0 + C(recipe)"}, re_formula="1")  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        fit = model.fit(reml=True, method="lbfgs")
    variances = [*np.diag(np.atleast_2d(fit.cov_re)), *np.atleast_1d(fit.vcomp)]
    # Recipes are what differs inside blocks, blocks what differs among them; normal limits are too narrow for so few.
    recipes = len(set(zip(of.tolist(), recipe)))
    within, p = _wald(fit, "inside", recipes - len(names) - 1, level)
    return Mixed(
        within, _wald(fit, "among", len(names) - 2, level)[0] if apart else None, p, len(names), bool(fit.converged),
        bool(any("boundary" in str(each.message) for each in said) or min(variances) < 1e-6 * max(fit.scale, 1e-12)),
    )  # fmt: skip


def _wald(fit, name: str, freedom: int, level: float) -> tuple[Interval, float]:
    point, error, t = float(fit.params[name]), float(fit.bse_fe[name]), stats.t(max(freedom, 1))
    half = float(t.ppf((1 + level) / 2)) * error
    return Interval(point, point - half, point + half), float(2 * t.sf(abs(point) / error))


def slope(x, y, level: float = 0.95) -> Interval | None:
    """Least squares slope of y on x with its t interval; None below three points or where x does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    if np.ptp(y) == 0:
        return Interval(0.0, 0.0, 0.0)
    found = stats.linregress(x, y)
    half = stats.t.ppf((1 + level) / 2, len(x) - 2) * found.stderr
    return Interval(float(found.slope), float(found.slope - half), float(found.slope + half))


def mean(values, level: float = 0.95) -> Interval | None:
    """Mean with its t interval; None below two values."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def difference(a, b, level: float = 0.95) -> Interval | None:
    """Mean of a less that of b with Welch's t interval; None below two values on either side."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2:
        return None
    point = float(a.mean() - b.mean())
    parts = [values.var(ddof=1) / len(values) for values in (a, b)]
    total = sum(parts)
    if total == 0:
        return Interval(point, point, point)
    freedom = total**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b)))
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(total)
    return Interval(point, float(point - half), float(point + half))


def detectable_correlation(n: int, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest |r| that n independent checkpoints tell from 0 with this power (Fisher's z)."""
    if n < 4:
        return 1.0
    return float(np.tanh((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) / np.sqrt(n - 3)))
