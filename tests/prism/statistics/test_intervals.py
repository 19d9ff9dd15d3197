"""Every interval covers what it says, in the regime that it states: nominal 95 %, accepted from 93 % to 97 %."""

import jax
import numpy as np
import pytest
import quick
from scipy import optimize, special, stats
from sklearn.utils import resample

from lvr_jax.prism.probes.folds import stratified_folds
from lvr_jax.prism.probes.logistic_probe import information_interval, label_entropy
from lvr_jax.prism.probes.ridge import ridge_scores
from lvr_jax.prism.statistics import intervals

N = 191


def share_covered(interval, truth):
    return np.mean((interval.low <= truth + 1e-12) & (truth - 1e-12 <= interval.high))


def assert_nominal(coverage):
    assert 0.93 <= coverage <= 0.97, coverage


@pytest.mark.parametrize("n", [100, N, 697])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.372, 0.5, 0.7, 0.9])
def test_wilson_covers(n, p):
    counts = np.arange(n + 1)
    interval = intervals.wilson(counts, n)
    covers = (interval.low <= p) & (p <= interval.high)
    assert_nominal(stats.binom.pmf(counts, n, p) @ covers)  # every outcome weighted by its probability: no simulation


# Flip rates (gained, lost): both ways, nearly one way, and all one way, from 3 expected flips to a third of the items.
@pytest.mark.parametrize(
    "gained, lost",
    [(0.01, 0.01), (0.03, 0.01), (0.02, 0.0), (0.05, 0.0), (0.02, 0.05), (0.05, 0.05), (0.0, 0.1), (0.05, 0.3)],
)
def test_tango_covers_also_where_all_flips_go_one_way(gained, lost):
    up, down = (a.ravel() for a in np.mgrid[: N + 1, : N + 1])
    up, down = up[up + down <= N], down[up + down <= N]
    likely = stats.multinomial.pmf(np.stack([up, down, N - up - down], -1), N, [gained, lost, 1 - gained - lost])
    up, down, likely = up[likely > 1e-9], down[likely > 1e-9], likely[likely > 1e-9]
    interval = intervals.tango(up, down, N)
    covers = (interval.low <= gained - lost + 1e-9) & (gained - lost - 1e-9 <= interval.high)
    assert_nominal(likely @ covers)


@pytest.mark.parametrize("gained, lost, n", [(1, 0, 44), (4, 15, N), (0, 6, N), (30, 30, 300)])
def test_tangos_limits_are_where_the_score_test_turns(gained, lost, n):
    interval = intervals.tango(gained, lost, n)
    assert interval.low < (gained - lost) / n < interval.high
    for delta in (interval.low, interval.high):
        # The likeliest flip rates under this difference, found by search instead of the closed form.
        def surprise(lost_rate, delta=delta):
            rates = np.array([lost_rate + delta, lost_rate, 1 - 2 * lost_rate - delta])
            return -special.xlogy([gained, lost, n - gained - lost], rates).sum()

        edge = max(0, -delta)
        found = optimize.minimize_scalar(surprise, bounds=(edge + 1e-12, (1 - delta) / 2 - 1e-12), method="bounded",
                                         options={"xatol": 1e-12})  # fmt: skip
        variance = (2 * found.x + delta - delta**2) / n
        assert ((gained - lost) / n - delta) ** 2 / variance == pytest.approx(stats.norm.ppf(0.975) ** 2, rel=1e-3)


def test_the_paired_bootstrap_covers_in_its_regime_and_fails_outside_it():
    rng = np.random.default_rng(0)
    weights = intervals.item_weights(N, 2000, seed=1)

    def coverage(gained, lost, runs=3000):
        flips = rng.choice([1.0, -1.0, 0.0], (runs, N), p=[gained, lost, 1 - gained - lost])
        return share_covered(intervals.item_bootstrap(flips, weights), gained - lost)

    for gained, lost in [(0.05, 0.05), (0.1, 0.05), (0.03, 0.3), (0.2, 0.2)]:
        assert_nominal(coverage(gained, lost))
    # Six flips, all one way: resampling cannot invent the other kind. This is why deltas carry Tango's interval.
    assert coverage(0.03, 0.0) < 0.93


@pytest.mark.parametrize("draw", ["normal", "heavy", "skewed", "binary"])
def test_the_item_bootstrap_covers_the_mean(draw):
    rng = np.random.default_rng(2)
    values, mean = {
        "normal": lambda: (rng.normal(0.3, 1, (3000, N)), 0.3),
        "heavy": lambda: (rng.standard_t(4, (3000, N)), 0.0),
        "skewed": lambda: (rng.gamma(2, 1, (3000, N)), 2.0),
        "binary": lambda: ((rng.random((3000, N)) < 0.35).astype(float), 0.35),
    }[draw]()
    assert_nominal(share_covered(intervals.item_bootstrap(values, intervals.item_weights(N, 2000, seed=3)), mean))


def test_the_item_bootstrap_draws_items_as_any_resampler_does_and_skips_gaps():
    rng = np.random.default_rng(4)
    values = rng.normal(size=60)
    ours = intervals.item_bootstrap(values, intervals.item_weights(60, 20_000, seed=5))
    reference = [resample(values, random_state=seed).mean() for seed in range(4000)]
    np.testing.assert_allclose([ours.low, ours.high], np.quantile(reference, [0.025, 0.975]), atol=0.012)
    assert ours.point == pytest.approx(values.mean())
    # An item without a value leaves the mean of the others, not a zero.
    gappy = np.where(np.arange(60) < 3, np.nan, values)
    assert intervals.item_bootstrap(gappy, intervals.item_weights(60, 100)).point == pytest.approx(values[3:].mean())


@pytest.mark.parametrize("p", [0.33, 0.5, 0.7])
def test_the_fold_interval_covers(p):
    rng = np.random.default_rng(6)
    folds = rng.binomial([39, 38, 38, 38, 38], p, (20_000, 5)) / [39, 38, 38, 38, 38]
    assert_nominal(share_covered(intervals.fold_interval(folds), p))


@pytest.mark.slow
def test_probe_intervals_cover_when_training_sets_are_drawn_too():
    # The whole probe on 600 data sets with the same labels: the truth is its mean accuracy over data sets.
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(4), [71, 70, 27, 23])
    means = 0.55 * rng.standard_normal((4, 8))
    x = (rng.standard_normal((600, N, 8)) + means[labels]).astype(np.float32)
    fit = lambda x: ridge_scores(x, labels[None], stratified_folds(labels), [1.0], n_classes=4)  # noqa: E731
    scores = jax.jit(fit, compiler_options=quick.OPTIMIZED)(x)
    hits = np.asarray(scores.predicted[:, 0, 0]) == labels
    assert 0.45 < hits.mean() < 0.8
    assert_nominal(share_covered(intervals.item_bootstrap(hits, intervals.item_weights(N, 2000)), hits.mean()))
    by_fold = np.asarray(scores.accuracy[:, :, 0, 0])
    assert_nominal(share_covered(intervals.fold_interval(by_fold), by_fold.mean()))


def test_the_information_interval_covers():
    # A calibrated posterior over four letters with known entropy and loss; the truth by a large sample.
    prior = np.array([71, 70, 27, 23]) / N

    def draw(rng, n):
        label = rng.choice(4, n, p=prior)
        logits = np.log(prior) + 0.6 * (np.eye(4)[label] + rng.standard_normal((n, 4)))
        q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return label, -np.log(q[np.arange(n), label])

    truth = label_entropy(prior) - draw(np.random.default_rng(8), 1_000_000)[1].mean()
    weights, rng, covered = intervals.item_weights(N, 800, seed=9), np.random.default_rng(10), []
    for _ in range(1500):
        interval = information_interval(*draw(rng, N), weights)
        covered.append(interval.low <= truth <= interval.high)
    assert_nominal(np.mean(covered))
