"""Simultaneous intervals cover, all at once and after the most telling one was chosen."""

import numpy as np
import pytest
from scipy import stats

from lvr_jax.prism.statistics.simultaneous import simultaneous

N, C = 191, 6


def differences(rng, effects, churn=0.1, shared=0.7):
    """Paired differences [C, N] in -1, 0, 1 with these means, flips of an item going together over conditions."""
    common, own = rng.standard_normal(N), rng.standard_normal((C, N))
    u = stats.norm.cdf(np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
    lost, gained = churn + np.maximum(-effects, 0), churn + np.maximum(effects, 0)
    return (u > 1 - gained[:, None]).astype(float) - (u < lost[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("effects", [[0.0] * C, [-0.1] * C, [-0.3, -0.2, -0.1, 0.0, 0.1, 0.3]], ids=str)
def test_all_intervals_cover_together_in_95_percent(effects):
    rng, effects, together, chosen = np.random.default_rng(0), np.array(effects), [], []
    for seed in range(1000):
        found = simultaneous(differences(rng, effects), draws=400, seed=seed + 1)
        inside = (found.low <= effects) & (effects <= found.high)
        together.append(inside.all())
        chosen.append(inside[np.argmax(np.abs(found.point))])
    assert 0.93 <= np.mean(together) <= 0.97
    # The one that was chosen for being the largest is covered at least as often; with equal effects no more than that.
    assert np.mean(chosen) >= 0.93
    if np.ptp(effects) == 0:
        assert np.mean(chosen) <= 0.985


@pytest.mark.slow
def test_the_interval_of_one_does_not_cover_the_largest_of_six():
    """What the correction is for: chosen among equals, one's own interval is too sure of itself."""
    rng, alone, corrected = np.random.default_rng(1), [], []
    for seed in range(600):
        d = differences(rng, np.zeros(C), shared=0.0)
        found = simultaneous(d, draws=300, seed=seed)
        most = int(np.argmax(np.abs(found.point)))
        own = simultaneous(d[most][None], draws=300, seed=seed)
        alone.append(own.low[0] <= 0 <= own.high[0])
        corrected.append(found.low[most] <= 0 <= found.high[most])
    assert np.mean(alone) < 0.85 and np.mean(corrected) >= 0.93


def test_an_interval_has_a_length_where_nothing_flipped():
    found = simultaneous(np.zeros((2, 100)))
    assert found.critical == pytest.approx(1.96, abs=0.01) and (found.p == 1).all()
    assert (found.low < -0.01).all() and (found.high < 0.05).all() and not found.found.any()


def test_one_comparison_equals_the_published_interval():
    """Bonett and Price (2012) at 40 lost, 10 gained of 191: (10 - 40) / 193 and their adjusted variance."""
    d = np.repeat([-1.0, 1.0, 0.0], [40, 10, 141])[None]
    found = simultaneous(d, draws=200_000)
    centre = -30 / 193
    error = np.sqrt((41 + 11) / 193 - centre**2) / np.sqrt(193)
    assert found.point[0] == pytest.approx(-30 / 191)
    assert [found.low[0], found.high[0]] == pytest.approx([centre - 1.96 * error, centre + 1.96 * error], abs=1e-3)
    assert found.p[0] == pytest.approx(2 * stats.norm.sf(abs(centre) / error), abs=2e-5)


def test_more_comparisons_make_wider_intervals_and_larger_p():
    rng = np.random.default_rng(2)
    d = differences(rng, np.full(C, -0.1), shared=0.0)
    one, all_six = simultaneous(d[:1]), simultaneous(d)
    assert all_six.critical > one.critical and all_six.p[0] > one.p[0] and all_six.low[0] < one.low[0]


def test_missing_items_are_in_no_mean_and_an_empty_comparison_is_refused():
    d = np.zeros((2, 50))
    d[0, :10], d[1, 10:] = -1, np.nan
    assert simultaneous(d).point.tolist() == [-0.2, 0.0]
    d[1] = np.nan
    with pytest.raises(ValueError, match="an item in each"):
        simultaneous(d)
