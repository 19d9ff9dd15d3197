"""Does the verdict tell a latent that carries the answer from one that is ignored, at the size of V*Bench?"""

import numpy as np
import pytest

from lvr_jax.prism.verdict import load_bearing_verdict

N, CONDITIONS = 191, ("zero", "noise 1", "noise 10", "swap", "mean", "first repeat")


def planted(seed, own_path, conditions=6, n=N, jitter=0.15):
    """Margins and answers where own_path is the part of the evidence that does not run through the latent.

    A corruption replaces the rest by evidence of another item, and any rerun jitters a little.
    """
    rng = np.random.default_rng(seed)
    clean = rng.normal(1.0, 1.2, n)
    without = rng.normal(-0.8, 1.2, (conditions, n))
    moved = own_path * clean + (1 - own_path) * without + jitter * rng.standard_normal((conditions, n))
    return clean > 0, moved > 0, clean, moved


def verdict(seed, own_path, draws=1000, **how):
    clean, answers, margin, margins = planted(seed, own_path, **how)
    names = CONDITIONS[: len(answers)]
    return load_bearing_verdict(clean, answers, margin, margins, chance=0.25, names=names, draws=draws)


@pytest.mark.parametrize("kind, own_path", [("load-bearing", 0.0), ("ignored", 1.0), ("partly", 0.5)])
def test_the_verdict_is_right_for_planted_latents_over_fifty_seeds(kind, own_path):
    verdicts = [verdict(seed, own_path) for seed in range(50)]
    # "ignored" is also what a false alarm on a negligible shift reads as: count the alarms apart, below.
    assert [v.kind for v in verdicts] == [kind] * 50
    assert np.mean([v.sure for v in verdicts]) >= 0.9


@pytest.mark.slow
def test_false_alarms_under_an_ignored_latent_are_at_the_nominal_level():
    # One condition, and a sweep of six with Holm: 4.5 % on the margins, exact, and up to 0.5 % on the answers.
    single = np.array([verdict(seed, 1.0, draws=50, conditions=1).p <= 0.05 for seed in range(1000)])
    sweep = np.array([verdict(seed, 1.0, draws=50).p <= 0.05 for seed in range(1000)])
    for alarms in (single, sweep):
        # Within what 1,000 runs can tell of 5 %: two standard errors.
        assert abs(alarms.mean() - 0.05) <= 2 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_the_share_of_one_condition_covers():
    clean, answers, _, _ = planted(0, 0.5, n=2_000_000, conditions=1)
    truth = (clean.mean() - answers.mean()) / (clean.mean() - 0.25)
    covered = []
    for seed in range(1500):
        clean, answers, _, _ = planted(seed, 0.5, conditions=1)
        share = load_bearing_verdict(clean, answers, chance=0.25, names=["zero"], draws=800, seed=seed).share
        covered.append(share.low <= truth <= share.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_corruption_that_helps_is_called_harmful_latents():
    answers, clean, _, _ = planted(3, 0.4, conditions=1)
    found = load_bearing_verdict(clean[0], answers[None], chance=0.1, names=["zero"], draws=500)
    assert found.kind == "harmful" and found.share.high < 0 and "do harm" in found.sentence


def test_a_margin_that_moves_without_any_answer_changing_is_partly_used():
    rng = np.random.default_rng(4)
    margin = np.where(rng.random(N) < 0.7, 2.0, -2.0) + rng.normal(0, 0.1, N)
    moved = margin - 0.5 + rng.normal(0, 0.1, N)
    found = load_bearing_verdict(
        margin > 0, (moved > 0)[None], margin, moved[None], chance=0.25, names=["zero"], draws=500
    )
    assert ((moved > 0) == (margin > 0)).all()
    assert (found.kind, found.measure) == ("partly", "margin")


def test_a_significant_but_tiny_shift_is_not_use():
    rng = np.random.default_rng(5)
    margin = rng.normal(1, 1.2, N)
    moved = margin - 0.01 + rng.normal(0, 0.02, N)
    found = load_bearing_verdict(margin > 0, (moved > 0)[None], margin, moved[None], chance=0.25, names=["zero"])
    assert found.p < 0.01 and found.kind == "ignored"


def test_a_corruption_that_silences_the_model_is_found_without_margins():
    clean, _, margin, _ = planted(8, 0.0, conditions=1)
    silent = np.full((1, N), np.nan)
    found = load_bearing_verdict(clean, np.zeros((1, N)), margin, silent, chance=0.25, names=["zero"], draws=500)
    assert (found.kind, found.measure) == ("load-bearing", "accuracy") and found.p < 1e-6


def test_what_n_cannot_show_is_undecided_and_said():
    rng = np.random.default_rng(6)
    clean = np.arange(24) < 17
    worse = clean.copy()
    worse[:4], worse[-1] = False, True
    found = load_bearing_verdict(clean, worse[None], chance=0.25, names=["zero"])
    assert found.kind == "undecided" and found.p > 0.05
    assert "would usually go unnoticed" in found.sentence
    guessing = rng.random(N) < 0.25
    found = load_bearing_verdict(guessing, guessing[None], chance=0.25, names=["zero"])
    assert found.kind == "undecided" and "not above chance" in found.sentence


def test_the_published_deltas_alone_cannot_say_that_latents_are_bypassed():
    # LVR's truncation at its clearest: 5 of 134 right answers lost, none gained. Up to a tenth of the edge may be gone.
    clean = np.arange(N) < 134
    found = load_bearing_verdict(clean, (np.arange(N) < 129)[None], chance=0.25, names=["truncate"])
    assert found.kind == "ignored" and found.p == pytest.approx(0.0625)
    assert found.share.high > 0.08 and found.smallest > 0.04
