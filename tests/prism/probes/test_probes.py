"""Probes, controls, baselines and the capacity ladder say what is planted, and nothing more."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler

from lvr_jax.prism.probes import probes
from lvr_jax.prism.probes.capacity import capacity_ladder, random_fourier_features
from lvr_jax.prism.probes.controls import control_labels, majority_predictions
from lvr_jax.prism.probes.folds import stratified_folds
from lvr_jax.prism.probes.logistic_probe import logistic_probe

CASES = Path(__file__).parents[2] / "golden" / "cases"
ITEMS, WIDTH = 120, 48
RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), [50, 40, 18, 12])
FOLDS = stratified_folds(LABELS)
SIGNAL = 0.5 * RNG.standard_normal((4, WIDTH))[LABELS]
# One position that holds the answer, one that holds none.
STATES = (RNG.standard_normal((2, ITEMS, WIDTH)) + np.stack([SIGNAL, 0 * SIGNAL])).astype(np.float32)
CONTROLS = control_labels("marginal", LABELS, 39, n_classes=4, seed=1)


@pytest.fixture(scope="module")
def found():
    return probes.decodability(STATES, LABELS, CONTROLS, FOLDS, n_classes=4, draws=2000)


def test_a_planted_answer_is_found_and_an_empty_position_is_not(found):
    assert found.accuracy.low[0] > 0.7 and found.selectivity.low[0] > 0.4
    assert found.control_p[0] == pytest.approx(1 / 40)
    assert found.accuracy.high[1] < 0.5 and found.control_p[1] > 0.05
    np.testing.assert_allclose(found.selectivity.point, found.accuracy.point - found.control, atol=1e-12)


def test_a_uniform_control_takes_the_letter_prior_for_knowledge(found):
    # The paper's control: uniform letters. The empty position follows the skewed prior and looks selective.
    uniform = control_labels("uniform", LABELS, 39, n_classes=4)
    fooled = probes.decodability(STATES, LABELS, uniform, FOLDS, n_classes=4, draws=2000)
    assert fooled.accuracy.point[1] == found.accuracy.point[1]
    assert fooled.control[1] == pytest.approx(0.25, abs=0.03)
    assert fooled.selectivity.point[1] > found.selectivity.point[1] + 0.03


def test_decodability_equals_a_scikit_learn_loop(found):
    for p in range(2):
        correct, by_fold = np.zeros(ITEMS), []
        for f in range(5):
            train, held = FOLDS.train[f][FOLDS.train_valid[f]], FOLDS.held[f][FOLDS.held_valid[f]]
            scaler = StandardScaler().fit(STATES[p, train].astype(np.float64))
            model = RidgeClassifierCV(alphas=probes.ALPHAS).fit(scaler.transform(STATES[p, train]), LABELS[train])
            assert model.alpha_ == pytest.approx(found.alpha[p, f])
            correct[held] = model.predict(scaler.transform(STATES[p, held])) == LABELS[held]
            by_fold.append(correct[held].mean())
        np.testing.assert_array_equal(found.correct[p], correct)
        assert found.by_fold.point[p] == pytest.approx(np.mean(by_fold))
        assert found.by_fold.low[p] < np.mean(by_fold) < found.by_fold.high[p]


def test_the_gap_is_paired_and_leaves_out_items_that_one_probe_lacks(found):
    gap = probes.gap(found.correct[0], found.correct[1])
    assert gap.point == pytest.approx(found.accuracy.point[0] - found.accuracy.point[1])
    assert 0 < gap.low < gap.point < gap.high
    gappy = np.where(np.arange(ITEMS) < 10, np.nan, found.correct[0])
    assert probes.gap(gappy, found.correct[1]).point == pytest.approx((found.correct[0] - found.correct[1])[10:].mean())
    # A position against itself has no gap and no uncertainty, whatever its accuracy.
    same = probes.gap(found.correct[0], found.correct[0])
    assert (same.low, same.point, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="share no item"):
        probes.gap(np.full(3, np.nan), np.ones(3))


def test_control_labels_keep_what_their_kind_says():
    categories = np.array(["two", "four"])[(np.arange(ITEMS) % 2)]
    uniform = control_labels("uniform", LABELS, 400, n_classes=4)
    np.testing.assert_allclose((uniform[..., None] == np.arange(4)).mean((0, 1)), 0.25, atol=0.01)
    marginal = control_labels("marginal", LABELS, 400, n_classes=4)
    np.testing.assert_array_equal(np.sort(marginal, 1), np.tile(np.sort(LABELS), (400, 1)))
    assert (marginal == LABELS).mean() == pytest.approx((np.bincount(LABELS) ** 2).sum() / ITEMS**2, abs=0.01)
    within = control_labels("per_category", LABELS, 50, n_classes=4, categories=categories)
    for name in ("two", "four"):
        inside = categories == name
        np.testing.assert_array_equal(np.sort(within[:, inside], 1), np.tile(np.sort(LABELS[inside]), (50, 1)))
    assert len({tuple(row) for row in within}) == 50
    with pytest.raises(ValueError, match="need the category"):
        control_labels("per_category", LABELS, 1, n_classes=4)
    with pytest.raises(ValueError, match="expected one of uniform, marginal, per_category"):
        control_labels("random", LABELS, 1, n_classes=4)


def test_a_label_that_the_format_gives_away_shows_in_the_option_count_baseline():
    # Two-option items are always A or B, four-option items always C or D; the majority letter knows nothing of it.
    options = np.where(LABELS < 2, 2, 4)
    question = np.eye(2, dtype=np.float32)[LABELS // 2]
    found = probes.baselines(LABELS, FOLDS, options, question, n_classes=4)
    assert found["majority"].point == pytest.approx(50 / ITEMS)
    assert found["option_count"].point == pytest.approx((50 + 18) / ITEMS)
    assert found["question_only"].point == found["option_count"].point
    assert found["majority"].low < found["majority"].point < found["majority"].high


def test_majority_is_learnt_on_the_training_fold_only():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Leaving items of one class out makes the other the majority: each is predicted wrongly, as it should be.
    folds = stratified_folds(labels, 2)
    one = folds.held[0][folds.held_valid[0]]
    shifted = labels.copy()
    shifted[one] = 1 - labels[one]
    assert set(majority_predictions(labels, folds)) == {0}
    unseen = np.where(np.isin(np.arange(8), one), "here", "there")
    assert set(majority_predictions(labels, folds, unseen)) == {0}
    assert majority_predictions(shifted, folds).shape == (8,)


def test_capacity_buys_controls_as_much_as_answers_only_where_nothing_is_planted():
    ladder = capacity_ladder(STATES[0], LABELS, CONTROLS[:4], FOLDS, n_classes=4, ranks=(1, 8, 500), widths=(512,),
                             alphas=(1.0, 1e6), alpha=1.0)  # fmt: skip
    assert [(r.kind, r.size) for r in ladder] == [
        ("pca", 1), ("pca", 8), ("ridge", WIDTH), ("ridge", WIDTH), ("fourier", 512)
    ]  # fmt: skip
    pca1, pca8, full, crushed, wide = ladder
    assert pca1.accuracy < pca8.accuracy and full.selectivity > 0.4 and wide.selectivity > 0.3
    assert crushed.alpha == 1e6 and crushed.accuracy < full.accuracy
    empty = capacity_ladder(STATES[1], LABELS, CONTROLS[:4], FOLDS, n_classes=4, ranks=(1, 8), widths=(),
                            alphas=(1.0, 1e6))  # fmt: skip
    assert max(r.selectivity for r in empty) < 0.25


def test_fourier_features_approximate_the_gaussian_kernel_as_scikit_learns_do():
    x = STATES[0]
    ours = random_fourier_features(x, 8192, bandwidth=9.0)
    exact = rbf_kernel(x, gamma=1 / (2 * 9.0**2))
    theirs = RBFSampler(gamma=1 / (2 * 9.0**2), n_components=8192, random_state=0).fit_transform(x)
    assert np.abs(ours @ ours.T - exact).max() < 1.3 * np.abs(theirs @ theirs.T - exact).max() < 0.1
    distance = np.sqrt(((x[:, None] - x) ** 2).sum(-1))[np.triu_indices(ITEMS, 1)]
    median = random_fourier_features(x, 16, bandwidth=float(np.median(distance)))
    np.testing.assert_allclose(random_fourier_features(x, 16), median, atol=1e-4)
    with pytest.raises(ValueError, match="identical"):
        random_fourier_features(np.ones((5, 3)), 4)


@pytest.mark.parametrize("name", ["D64", "D2048", "small_class"])
def test_the_papers_probe_equals_its_released_code(name):
    case = np.load(CASES / f"F1_probe_train_{name}.npz")
    found = logistic_probe(case["X"], case["y"], draws=200)
    # Recorded with scikit-learn 1.8.0 and another BLAS. L-BFGS stops on its default tolerance, so the last digits of
    # the sums that it adds decide where: 5e-5 in a probability at D = 2048. Every predicted letter is the same.
    if "oof_proba" in case:
        np.testing.assert_array_equal(found.held_by, case["fold_of_sample"])
        np.testing.assert_allclose(found.fold_accuracy, case["fold_acc"], rtol=1e-12)
        np.testing.assert_allclose(found.probability, case["oof_proba"], rtol=0, atol=5e-4)
        np.testing.assert_array_equal(found.predicted, case["oof_proba"].argmax(1))
    for field, key, tolerance in [
        ("accuracy", "accuracy_mean", 1e-12), ("accuracy_std", "accuracy_std", 1e-12),
        ("cross_entropy", "cross_entropy", 1e-4), ("entropy", "label_entropy_empirical", 1e-12),
        ("mi_empirical", "mi_lower_bound_nats", 1e-4), ("mi_uniform", "mi_lower_bound_uniform", 1e-4),
    ]:  # fmt: skip
        assert getattr(found, field) == pytest.approx(float(case[f"res_{key}"]), abs=tolerance), field
    assert len(found.fold_accuracy) == case["res_k_fold_effective"]
    assert found.by_item.low < (found.predicted == case["y"]).mean() < found.by_item.high
    assert found.mi_interval.low < found.mi_interval.high
    assert found.mi_interval.point == pytest.approx(found.entropy - found.cross_entropy)


def test_at_2048_features_the_papers_probe_stops_before_it_has_converged():
    case = np.load(CASES / "F1_probe_train_D2048.npz")
    found = logistic_probe(case["X"], case["y"], draws=200)
    assert found.cross_entropy - float(case["converged_ce"]) > 0.01
    assert found.fold_accuracy.mean() < case["converged_fold_acc"].mean()
