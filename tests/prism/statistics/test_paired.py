"""The paired tests are the textbook's, and their power is what it claims."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lvr_jax.prism.statistics.paired import adjust, compare_conditions, paired_t_pvalue
from lvr_jax.prism.statistics.power import exact_mcnemar, mcnemar_power, minimum_detectable_effect

N = 191


def test_exact_mcnemar_equals_statsmodels():
    for gained, lost in [(0, 0), (0, 5), (5, 0), (3, 8), (12, 12), (40, 21)]:
        reference = mcnemar([[100, lost], [gained, 50]], exact=True).pvalue
        assert exact_mcnemar(gained, lost) == pytest.approx(reference, rel=1e-12)


def test_the_papers_largest_losses_are_within_noise_and_its_largest_gain_is_not():
    # -2.6 points are 5 questions, +4.2 are 8. At best, with no flip the other way, 5 of 5 has p = 0.0625.
    assert exact_mcnemar(0, 5) == pytest.approx(0.0625)
    assert exact_mcnemar(8, 0) == pytest.approx(2 / 256)
    assert exact_mcnemar(0, 6) < 0.05


def test_adjusted_p_values_equal_statsmodels():
    p = np.random.default_rng(0).random(37) ** 3
    p[5] = p[6]
    for method in ("holm", "fdr_bh"):
        np.testing.assert_allclose(adjust(p, method), multipletests(p, method=method)[1], rtol=1e-12)


def test_holm_and_benjamini_hochberg_by_hand_and_with_gaps():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(adjust(p, "holm"), [0.04, np.nan, 0.09, 0.09, 0.5])
    np.testing.assert_allclose(adjust(p, "fdr_bh"), [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(adjust([np.nan], "holm")).all()


@pytest.mark.parametrize("lost, gained", [(0.06, 0.0), (0.1, 0.03), (0.05, 0.05)])
def test_power_equals_the_share_of_simulated_rejections(lost, gained):
    rng = np.random.default_rng(0)
    flips = rng.multinomial(N, [lost, gained, 1 - lost - gained], 40_000)
    simulated = (exact_mcnemar(flips[:, 1], flips[:, 0]) <= 0.05).mean()
    assert mcnemar_power(N, lost, gained) == pytest.approx(simulated, abs=0.01)


def test_the_exact_test_never_exceeds_its_level():
    for churn in (0.005, 0.02, 0.1, 0.3):
        assert mcnemar_power(N, churn, churn, 0.05) <= 0.05


def test_the_minimum_detectable_effect_has_the_power_asked_for():
    for churn in (0.0, 0.02, 0.1):
        effect = minimum_detectable_effect(N, churn)
        assert mcnemar_power(N, churn + effect, churn) == pytest.approx(0.8, abs=1e-3)
    # With no churn at all: 6 flips are needed to reject, 191 items reach them reliably only from about 4 points on.
    assert minimum_detectable_effect(N) == pytest.approx(0.041, abs=0.001)
    at_churn = [minimum_detectable_effect(n, churn) for n, churn in ((N, 0.05), (N, 0.01), (697, 0.01))]
    assert at_churn == sorted(at_churn, reverse=True)
    assert np.isnan(minimum_detectable_effect(4))
    with pytest.raises(ValueError, match="churn"):
        minimum_detectable_effect(N, 0.6)


def test_margin_p_is_the_paired_t_test_and_knows_when_nothing_moved():
    rng = np.random.default_rng(1)
    moved = rng.normal(0.2, 1, (2, 50))
    moved[1, :10] = np.nan
    p = paired_t_pvalue(np.concatenate([moved, np.zeros((1, 50)), np.full((1, 50), 0.5), np.full((1, 50), np.nan)]))
    assert p[0] == pytest.approx(stats.ttest_1samp(moved[0], 0).pvalue)
    assert p[1] == pytest.approx(stats.ttest_1samp(moved[1, 10:], 0).pvalue)
    assert p[2] == 1 and p[3] == 0 and np.isnan(p[4])


def test_margin_test_has_its_nominal_level():
    moved = np.random.default_rng(2).standard_t(5, (20_000, N))
    t = moved.mean(1) / (moved.std(1, ddof=1) / np.sqrt(N))
    assert paired_t_pvalue(moved[:50]) == pytest.approx(2 * stats.t.sf(np.abs(t[:50]), N - 1))
    assert (2 * stats.t.sf(np.abs(t), N - 1) <= 0.05).mean() == pytest.approx(0.05, abs=0.005)


def test_a_comparison_counts_flips_and_carries_every_interval():
    clean = np.array([1] * 134 + [0] * 57)
    worse = clean.copy()
    worse[:15], worse[-4:] = 0, 1
    margin = np.linspace(2, -1, N)
    moved = np.stack([margin, margin - 0.5 + 0.1 * np.sin(np.arange(N))])
    moved[1, 5] = np.nan
    same, hurt = compare_conditions(clean, np.stack([clean, worse]), margin, moved, names=["sham", "zero"], draws=2000)
    assert (same.gained, same.lost, same.delta, same.p_mcnemar) == (0, 0, 0, 1)
    assert same.delta_interval.low < 0 < same.delta_interval.high and same.p_margin == 1
    assert (hurt.gained, hurt.lost) == (4, 15)
    assert hurt.delta == pytest.approx(-11 / N) and hurt.clean_accuracy == pytest.approx(134 / N)
    assert hurt.p_mcnemar == pytest.approx(mcnemar([[119, 15], [4, 53]], exact=True).pvalue)
    assert hurt.p_mcnemar_holm == pytest.approx(2 * hurt.p_mcnemar)
    assert hurt.delta_interval.low < hurt.delta_bootstrap.point < hurt.delta_interval.high < 0
    assert hurt.delta_bootstrap.low == pytest.approx(hurt.delta_interval.low, abs=0.01)
    assert hurt.margin_items == N - 1
    assert hurt.margin_delta.low < -0.5 + 0.1 * np.sin(np.arange(N)).mean() < hurt.margin_delta.high < -0.4
    assert hurt.minimum_effect == pytest.approx(minimum_detectable_effect(N, 4 / N))
    assert hurt.accuracy.low < 123 / N < hurt.accuracy.high


def test_a_comparison_without_margins_says_so_and_is_the_same_every_time():
    rng = np.random.default_rng(3)
    clean, conditions = rng.integers(0, 2, 40), rng.integers(0, 2, (3, 40))
    first, again = (compare_conditions(clean, conditions, names="abc", draws=500, seed=7) for _ in range(2))
    assert first[2].delta_bootstrap == again[2].delta_bootstrap
    assert first[0].margin_items == 0 and np.isnan(first[0].margin_delta.point) and np.isnan(first[0].p_margin_bh)
    with pytest.raises(ValueError, match="expected \\[2 names, 40 items\\]"):
        compare_conditions(clean, conditions, names="ab")
    with pytest.raises(ValueError, match="other than right"):
        compare_conditions(clean + 0.5, conditions, names="abc")
