"""Option-matching probe: equal to a scikit-learn loop, and finds a planted text where letters say nothing."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from lvr_jax.prism.probes.content import Questions, option_labels, option_probe
from lvr_jax.prism.probes.controls import control_labels
from lvr_jax.prism.probes.folds import folds_from_splits, stratified_folds
from lvr_jax.prism.probes.option_matching import compact, match_scores
from lvr_jax.prism.probes.probes import decodability

ALPHAS = 10.0 ** np.arange(-1, 4)


def planted(items, width, texts, seed, strength=1.0, most=6):
    """States that hold the text of the right option, under 2 to `most` options with letters drawn anew."""
    rng = np.random.default_rng(seed)
    words = rng.standard_normal((texts, 24))
    options = rng.integers(2, most + 1, items)
    offered = np.stack([rng.permutation(texts)[:most] for _ in range(items)])
    labels = rng.integers(0, options)
    features = words[offered]
    right = features[np.arange(items), labels]
    states = strength * right @ rng.standard_normal((24, width)) / 24**0.5 + rng.standard_normal((items, width))
    return states, features, labels, options


def scikit_learn(x, features, labels, options, splits, alphas, choose):
    """Places chosen [I] by one Ridge a fold and alpha, or by RidgeCV's own choice of alpha."""
    guess = np.full((1 if choose else len(alphas), len(x)), -1)
    right = features[np.arange(len(x)), labels]
    for train, held in splits:
        scale = StandardScaler().fit(x[train])
        for a, alpha in enumerate([alphas] if choose else alphas):
            model = RidgeCV(alphas=alpha) if choose else Ridge(alpha=alpha)
            moved = model.fit(scale.transform(x[train]), right[train]).predict(scale.transform(x[held]))
            moved -= right[train].mean(0)
            for i, m in zip(held, moved):
                offered = features[i, : options[i]] - right[train].mean(0)
                guess[a, i] = np.argmax(offered @ m / np.linalg.norm(offered, axis=1))
    return guess[0] if choose else guess


@pytest.mark.parametrize("items, width, texts", [(90, 40, 200), (120, 200, 18)], ids=["wide texts", "few texts"])
def test_predictions_equal_scikit_learns_on_the_same_folds(items, width, texts):
    x, features, labels, options = planted(items, width, texts, seed=1, strength=0.7)
    splits = list(KFold(5, shuffle=True, random_state=3).split(x))
    folds = folds_from_splits(splits, items)
    other = option_labels(labels, options, 2, seed=0)
    with jax.enable_x64(True):
        scores = match_scores(x, features, np.concatenate([labels[None], other]), options, folds, ALPHAS)
    for j, real in enumerate((labels, *other)):
        ours = np.asarray(scores.predicted[:, j])
        np.testing.assert_array_equal(ours, scikit_learn(x, features, real, options, splits, ALPHAS, False))
        chosen = scikit_learn(x, features, real, options, splits, ALPHAS, True)
        np.testing.assert_array_equal(np.asarray(scores.predicted_chosen[j]), chosen)


def test_fp32_chooses_what_fp64_does_but_for_ties():
    """Cosines of two options that differ by less than fp32's rounding may change places: 1 item in 200 at most."""
    x, features, labels, options = planted(191, 128, 60, seed=2)
    folds = stratified_folds(np.zeros(191, int) + np.arange(191) % 2, 5)
    quick = match_scores(np.float32(x), features, labels[None], options, folds, ALPHAS).predicted
    with jax.enable_x64(True):
        exact = match_scores(x, features, labels[None], options, folds, ALPHAS).predicted
    assert (np.asarray(quick) != np.asarray(exact)).mean() < 0.005


@pytest.mark.slow
def test_a_planted_text_is_found_at_191_items_and_the_letter_is_not():
    """Twenty draws: always found, and by the letter as often as a test at 1 in 20 finds nothing."""
    found, letters = [], []
    for seed in range(20):
        x, features, labels, options = planted(191, 64, 150, seed)
        valid = np.ones(191, bool)
        questions = Questions(np.zeros(191, str), [""] * 191, labels, options, features)
        p = option_probe(np.float32(x)[None, None], questions, valid, controls=19, level=0.95, draws=200, seed=seed)
        found.append((float(p["accuracy"].low[0, 0]) > p["chance"], float(p["control_p"][0, 0])))
        folds = stratified_folds(labels, 5)
        drawn = control_labels("marginal", labels, 19, n_classes=6, seed=seed)
        letters.append(float(decodability(np.float32(x), labels, drawn, folds, n_classes=6, draws=200).control_p))
    assert all(above and p <= 0.05 for above, p in found)
    assert sum(p <= 0.05 for p in letters) <= 4       # 1 expected of 20; five or more have a chance of 0.3 %


def test_nothing_planted_is_found_at_its_nominal_rate():
    p = []
    for seed in range(20):
        x, features, labels, options = planted(100, 32, 80, seed, strength=0.0)
        questions = Questions(np.zeros(100, str), [""] * 100, labels, options, features)
        made = option_probe(np.float32(x)[None, None], questions, np.ones(100, bool), controls=19, level=0.95,
                            draws=100, seed=seed)  # fmt: skip
        p.append(float(made["control_p"][0, 0]))
    assert sum(value <= 0.05 for value in p) <= 4


def test_rotated_features_keep_their_inner_products():
    features = np.random.default_rng(0).standard_normal((3, 2, 50))
    short = compact(features, np.array([2, 2, 2]))
    assert short.shape[-1] == 6
    flat = lambda f: f.reshape(6, -1)  # noqa: E731
    np.testing.assert_allclose(flat(short) @ flat(short).T, flat(features) @ flat(features).T, atol=1e-12)


def test_labels_outside_an_items_options_are_refused():
    x, features, labels, options = planted(20, 8, 30, 0)
    folds = folds_from_splits(list(KFold(2).split(x)), 20)
    with pytest.raises(ValueError, match="not among its item's options"):
        match_scores(x, features, labels[None] + 6, options, folds, ALPHAS)
