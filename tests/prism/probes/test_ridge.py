"""The closed-form probe is scikit-learn's, to the last prediction."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lvr_jax.prism.probes import ridge
from lvr_jax.prism.probes.folds import folds_from_splits, stratified_folds

ALPHAS = (1e-2, 1.0, 30.0, 1e3)


def planted(items, width, classes, seed, signal=0.5, shift=3.0):
    """Gaussian features [I, D] (fp32) with class means and a large common shift; labels with a skewed prior."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, items, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
    means = signal * rng.standard_normal((classes, width))
    return (rng.standard_normal((items, width)) + means[labels] + shift).astype(np.float32), labels


@pytest.mark.parametrize("alpha", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("items, width, classes", [(191, 2048, 4), (60, 300, 3), (191, 24, 4), (80, 30, 2)])
def test_coefficients_equal_scikit_learn(items, width, classes, alpha):
    x, labels = planted(items, width, classes, seed=items + width)
    # The reference in fp64 by SVD, which squares no condition number.
    reference = RidgeClassifier(alpha=alpha, solver="svd").fit(x.astype(np.float64), labels)
    coef, intercept = ridge.ridge_coefficients(x, labels, alpha, n_classes=classes)
    assert coef.dtype == np.float32
    rows = slice(1, 2) if classes == 2 else slice(None)
    np.testing.assert_allclose(coef[rows], np.atleast_2d(reference.coef_), rtol=0, atol=1e-5)
    np.testing.assert_allclose(intercept[rows], reference.intercept_, rtol=0, atol=1e-4 * (1 + np.abs(x).max()))
    with jax.enable_x64(True):
        coef, intercept = ridge.ridge_coefficients(x.astype(np.float64), labels, alpha, n_classes=classes)
        assert coef.dtype == np.float64
        np.testing.assert_allclose(coef[rows], np.atleast_2d(reference.coef_), rtol=0, atol=1e-10)
        np.testing.assert_allclose(intercept[rows], reference.intercept_, rtol=0, atol=1e-9)


def test_where_items_and_features_are_equally_many_fp32_stays_within_an_order_of_scikit_learns_own_fp32():
    # At I = D the smallest eigenvalue nears 0: with alpha = 0.01 rounding of the Gram matrix alone costs digits, ours
    # (I x I) and theirs (D x D) alike.
    x, labels = planted(80, 79, 3, seed=159)
    exact = RidgeClassifier(alpha=1e-2, solver="svd").fit(x.astype(np.float64), labels).coef_
    theirs = np.abs(RidgeClassifier(alpha=1e-2, solver="cholesky").fit(x, labels).coef_ - exact).max()
    ours = np.abs(np.asarray(ridge.ridge_coefficients(x, labels, 1e-2, n_classes=3)[0]) - exact).max()
    assert ours < 10 * theirs
    assert ours < 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize(
    "wide, double, standardize",
    [(True, False, False), (False, False, False), (True, False, True), (False, True, True)],
)
def test_predictions_equal_scikit_learn_for_every_cell_fold_alpha_and_labeling(wide, double, standardize):
    rng = np.random.default_rng(5)
    width = 256 if wide else 20
    x, labels = planted(97, width, 4, seed=1)
    cells = np.stack([x, rng.standard_normal(x.shape).astype(np.float32)])[:, None]
    labelings = np.stack([labels, *rng.integers(0, 4, (2, 97))])
    folds = stratified_folds(labels, 5, seed=42)
    with jax.enable_x64(double):
        cells = cells.astype(np.float64) if double else cells
        ours = jax.device_get(
            ridge.ridge_scores(cells, labelings, folds, ALPHAS, n_classes=4, standardize=standardize, cells=1)
        )
    assert ours.predicted.shape == (2, 1, len(ALPHAS), 3, 97)
    splits = list(StratifiedKFold(5, shuffle=True, random_state=42).split(labels, labels))
    for p in range(2):
        for f, (train, held) in enumerate(splits):
            for j, y in enumerate(labelings):
                for a, alpha in enumerate(ALPHAS):
                    model = make_pipeline(*[StandardScaler()] * standardize, RidgeClassifier(alpha=alpha))
                    expected = model.fit(cells[p, 0, train].astype(np.float64), y[train]).predict(cells[p, 0, held])
                    np.testing.assert_array_equal(ours.predicted[p, 0, a, j, held], expected)
                    np.testing.assert_allclose(ours.accuracy[p, 0, f, a, j], (expected == y[held]).mean(), rtol=1e-6)


@pytest.mark.parametrize("loo", ridge.LOO_SCORES)
@pytest.mark.parametrize("items, width", [(97, 256), (97, 20)])
def test_leave_one_out_choice_equals_ridge_classifier_cv(items, width, loo):
    x, labels = planted(items, width, 4, seed=3, signal=0.35)
    labelings = np.stack([labels, np.random.default_rng(0).integers(0, 4, items)])
    folds = stratified_folds(labels, 5)
    ours = jax.device_get(ridge.ridge_scores(x, labelings, folds, ALPHAS, n_classes=4, loo=loo))
    for f in range(5):
        train, held = folds.train[f][folds.train_valid[f]], folds.held[f][folds.held_valid[f]]
        for j, y in enumerate(labelings):
            scoring = None if loo == "squared_error" else loo
            model = RidgeClassifierCV(alphas=ALPHAS, scoring=scoring, store_cv_results=loo == "squared_error")
            model.fit(x[train].astype(np.float64), y[train])
            assert ALPHAS[ours.chosen[f, j]] == model.alpha_
            np.testing.assert_allclose(ours.loo_score[f, ours.chosen[f, j], j], model.best_score_, rtol=1e-4)
            np.testing.assert_array_equal(ours.predicted_chosen[j, held], model.predict(x[held]))
            accuracy = (model.predict(x[held]) == y[held]).mean()
            np.testing.assert_allclose(ours.accuracy_chosen[f, j], accuracy, rtol=1e-6)
            if loo == "squared_error":
                np.testing.assert_allclose(-ours.loo_score[f, :, j], model.cv_results_.mean((0, 1)), rtol=1e-4)


def test_leave_one_out_score_is_a_refit_without_each_item():
    x, labels = planted(30, 50, 3, seed=9)
    everything = folds_from_splits([(np.arange(30), np.arange(1))], 30)
    with jax.enable_x64(True):
        score = ridge.ridge_scores(x.astype(np.float64), labels[None], everything, [2.0], n_classes=3).loo_score
        errors = []
        for i in range(30):
            rest = np.delete(np.arange(30), i)
            coef, intercept = ridge.ridge_coefficients(x[rest].astype(np.float64), labels[rest], 2.0, n_classes=3)
            errors.append(((2 * np.eye(3)[labels[i]] - 1 - coef @ x[i] - intercept) ** 2).mean())
    np.testing.assert_allclose(-score[0, 0, 0], np.mean(errors), rtol=1e-9)


@pytest.mark.parametrize("items, width", [(90, 200), (90, 12)])
def test_a_rank_equals_pca_before_ridge(items, width):
    x, labels = planted(items, width, 3, seed=7)
    ranks = np.array([1, 3, 10])
    folds = stratified_folds(labels, 5)
    ours = ridge.ridge_scores(x, labels[None], folds, np.full(3, 5.0), ranks=ranks, n_classes=3)
    for f in range(5):
        train, held = folds.train[f][folds.train_valid[f]], folds.held[f][folds.held_valid[f]]
        for a, rank in enumerate(ranks):
            model = make_pipeline(PCA(rank, svd_solver="full"), RidgeClassifier(alpha=5.0))
            expected = model.fit(x[train].astype(np.float64), labels[train]).predict(x[held])
            np.testing.assert_array_equal(ours.predicted[a, 0, held], expected)


def test_a_class_that_a_training_fold_never_sees_is_never_predicted_and_changes_nothing():
    x, labels = planted(97, 256, 3, seed=2)
    folds = stratified_folds(labels, 5)
    three = ridge.ridge_scores(x, labels[None], folds, ALPHAS, n_classes=3)
    four = ridge.ridge_scores(x, labels[None], folds, ALPHAS, n_classes=4)
    np.testing.assert_array_equal(three.predicted, four.predicted)
    np.testing.assert_array_equal(three.chosen, four.chosen)


def test_fp32_survives_a_mean_that_dwarfs_the_spread():
    x, labels = planted(97, 256, 4, seed=4)
    massive = np.where(np.arange(256) == 7, 1000.0, 0).astype(np.float32)
    folds = stratified_folds(labels, 5)
    plain = ridge.ridge_scores(x, labels[None], folds, ALPHAS, n_classes=4)
    # A shift of 1,000 in one dimension, as language models have, costs fp32 features 3 of their 7 digits there.
    shifted = ridge.ridge_scores(x + massive, labels[None], folds, ALPHAS, n_classes=4)
    np.testing.assert_array_equal(plain.predicted, shifted.predicted)


def test_items_that_cannot_be_probed_do_not_touch_the_others():
    x, labels = planted(80, 120, 3, seed=6)
    valid = np.ones(80, bool)
    valid[[3, 40, 41]] = False
    broken = x.copy()
    broken[~valid] = np.nan
    with_gaps = ridge.ridge_scores(broken, labels[None], stratified_folds(labels, 5, valid=valid), ALPHAS, n_classes=3)
    without = ridge.ridge_scores(
        x[valid], labels[None, valid], stratified_folds(labels[valid], 5), ALPHAS, n_classes=3
    )
    np.testing.assert_array_equal(with_gaps.predicted[..., valid], without.predicted)
    assert (np.asarray(with_gaps.predicted)[..., ~valid] == -1).all()
    np.testing.assert_allclose(with_gaps.loo_score, without.loo_score, rtol=1e-5)


def test_bad_input_is_named():
    x, labels = planted(40, 10, 3, seed=0)
    folds = stratified_folds(labels, 4)
    with pytest.raises(ValueError, match="alphas"):
        ridge.ridge_scores(x, labels[None], folds, [0.0], n_classes=3)
    with pytest.raises(ValueError, match="labels from 0 to 2; expected 0 to 1"):
        ridge.ridge_scores(x, labels[None], folds, [1.0], n_classes=2)
    with pytest.raises(ValueError, match="expected one of squared_error, accuracy"):
        ridge.ridge_scores(x, labels[None], folds, [1.0], n_classes=3, loo="f1")
    with pytest.raises(ValueError, match="40 items"):
        ridge.ridge_scores(x, labels[None, :-1], folds, [1.0], n_classes=3)
    with pytest.raises(ValueError, match="at least twice"):
        stratified_folds([0, 0, 0, 1])
    with pytest.raises(ValueError, match="ranks"):
        ridge.ridge_scores(x, labels[None], folds, [1.0], ranks=[0], n_classes=3)
