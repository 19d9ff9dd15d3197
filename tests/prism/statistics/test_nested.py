"""Relations inside blocks and between them are told apart, with intervals over checkpoints."""

import numpy as np
import pytest
from scipy import stats

from lvr_jax.prism.statistics import nested
from lvr_jax.prism.statistics.across_variants import pearson
from lvr_jax.prism.statistics.correlation_intervals import fisher
from lvr_jax.prism.statistics.intervals import Interval


def simpson(rng, inside=30.0, among=-60.0, noise=1.0):
    """Six blocks of four recipes with three seeds each: up inside the blocks, down between them."""
    block, recipe = np.repeat(np.arange(6), 12), np.repeat(np.arange(24), 3)
    about = np.linspace(-0.15, 0.15, 4)[np.tile(np.repeat(np.arange(4), 3), 6)]
    x = np.linspace(0.2, 0.8, 6)[block] + about + rng.normal(0, 0.01, 72)
    own = nested.centred(x, block)
    y = 80 + inside * own + among * (x - own) + rng.normal(0, noise, 6)[block] + rng.normal(0, noise, 24)[recipe]
    return x, y + rng.normal(0, noise, 72), block.astype(str), recipe.astype(str)


def test_opposite_signs_inside_and_between_are_both_found():
    x, y, block, recipe = simpson(np.random.default_rng(0))
    found = nested.correlations(x, y, block)
    assert (found.checkpoints, found.blocks) == (72, 6)
    assert found.within.low > 0.5 and found.between.high < -0.5 and pearson(x, y) < 0, "together they are the blocks'"
    assert set(found.each) == set("012345") and min(each.point for each in found.each.values()) > 0.5


def test_fisher_counts_a_degree_of_freedom_for_every_further_block():
    x, y, block, _ = simpson(np.random.default_rng(1))
    r = float(pearson(nested.centred(x, block), nested.centred(y, block)))
    assert nested.correlations(x, y, block).within == fisher(r, 72 - 6 + 1)


def test_what_is_too_little_for_an_interval_has_none():
    x = np.arange(6.0)
    found = nested.correlations(x, x**2, ["a"] * 3 + ["b"] * 3)
    assert found.between is None and found.each == {"a": None, "b": None} and found.within is not None
    assert nested.correlations(x, np.ones(6), ["a"] * 6).within is None, "nothing varies"
    assert nested.mixed([1, 1, 2, 2], [1, 2, 3, 4], list("aabb"), list("abcd")) is None
    assert nested.mixed([1, 1, 1, 2, 2, 2], range(6), list("aaabbb"), list("abcdef")) is None, "x varies in no block"
    assert nested.slope([1, 1, 1], [1, 2, 3]) is None and nested.mean([1]) is None
    assert nested.difference([1, 2], [3]) is None


def test_the_mixed_model_finds_both_slopes():
    x, y, block, recipe = simpson(np.random.default_rng(2), noise=0.5)
    found = nested.mixed(x, y, block, recipe)
    assert found.converged and found.blocks == 6 and found.p_within < 1e-3
    assert found.within.low < 30 < found.within.high and found.between.low < -60 < found.between.high
    assert found.within.high - found.within.low < 15


@pytest.mark.slow
def test_the_mixed_models_interval_covers():
    """95 % nominal; of 40 data sets at least 34 (binomial, fewer once in 300)."""
    rng = np.random.default_rng(3)
    intervals = [nested.mixed(*simpson(rng)).within for _ in range(40)]
    assert sum(each.low <= 30 <= each.high for each in intervals) >= 34


def test_few_blocks_have_no_slope_between_that_means_anything():
    x, y, block, recipe = simpson(np.random.default_rng(4))
    for blocks in (1, 3):
        rows = np.isin(block, list("012345")[:blocks])
        assert nested.mixed(x[rows], y[rows], block[rows], recipe[rows]).between is None


def test_simple_intervals_are_scipys():
    rng = np.random.default_rng(5)
    a, b = rng.normal(1, 2, 5), rng.normal(0, 1, 4)
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.9)
    assert nested.mean(a, 0.9).low == pytest.approx(expected.low)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert nested.difference(a, b).high == pytest.approx(expected.high)
    x, y = [0, 1, 2, 3], [0, 1.1, 1.9, 3]
    line, expected = nested.slope(x, y), stats.linregress(x, y)
    assert line.point == pytest.approx(expected.slope)
    assert line.high - line.point == pytest.approx(stats.t.ppf(0.975, 2) * expected.stderr)
    assert nested.difference([1, 1], [0, 0]).low == 1
    assert nested.slope(x, [2, 2, 2, 2]) == Interval(0.0, 0.0, 0.0)


def test_what_so_many_checkpoints_can_show():
    """Simulated: the smallest r that 40 checkpoints find with 80 % is found in 76 to 84 % of 2,000 data sets."""
    n, rng = 40, np.random.default_rng(6)
    r = nested.detectable_correlation(n)
    x = rng.standard_normal((2000, n))
    y = r * x + np.sqrt(1 - r * r) * rng.standard_normal((2000, n))
    found = np.mean([not fisher(float(each), n).low <= 0 <= fisher(float(each), n).high for each in pearson(x, y)])
    assert 0.76 < found < 0.84
    assert nested.detectable_correlation(3) == 1
