"""Where the answer can be read: probe accuracy, selectivity and the gap between positions, with uncertainty."""

from dataclasses import dataclass

import jax
import numpy as np

from lvr_jax.prism.probes.controls import majority_predictions
from lvr_jax.prism.probes.folds import Folds
from lvr_jax.prism.probes.ridge import ridge_scores
from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval

ALPHAS = tuple(10.0**e for e in range(-2, 7))


@dataclass(frozen=True)
class Decodability:
    """Ridge probes of states [..., I, D]; `...` (positions, layers) leads every array. Accuracies are shares of 1.

    accuracy: over held-out items, with the item-bootstrap interval; by_fold: mean over folds with its t interval.
    control: mean accuracy over the control labelings; selectivity = accuracy - control, with the item-bootstrap
    interval. control_p: share of labelings (the real one included) that the probe scores at least as well on. alpha
    [..., F]: chosen by leave-one-out in each training fold. correct [..., I]: NaN for items in no fold.
    """

    accuracy: Interval
    by_fold: Interval
    control: np.ndarray
    selectivity: Interval
    control_p: np.ndarray
    alpha: np.ndarray
    correct: np.ndarray


def decodability(
    x, labels, controls, folds: Folds, *, n_classes, alphas=ALPHAS, standardize=True, level=0.95,
    draws=intervals.DRAWS, seed=0,
) -> Decodability:  # fmt: skip
    """Probes x [..., I, D] for labels [I] and, with the same folds, for all control labelings [J, I] at once."""
    labels, controls = np.asarray(labels), np.asarray(controls)
    if controls.ndim != 2 or len(controls) == 0:
        raise ValueError(f"decodability: controls of shape {controls.shape}; expected [labelings, items], at least one")
    labelings = np.concatenate([labels[None], controls])
    scores = jax.device_get(
        ridge_scores(x, labelings, folds, alphas, n_classes=n_classes, standardize=standardize)
    )
    covered = np.asarray(folds.covered)
    hits = np.where(covered, scores.predicted_chosen == labelings, np.nan)                # [..., J + 1, I]
    weights = intervals.item_weights(int(covered.sum()), draws, seed)
    real, control = hits[..., 0, :], hits[..., 1:, :].mean(-2)
    per_labeling = np.nanmean(hits, -1)
    return Decodability(
        accuracy=intervals.item_bootstrap(real[..., covered], weights, level),
        by_fold=intervals.fold_interval(scores.accuracy_chosen[..., 0], level),
        control=per_labeling[..., 1:].mean(-1),
        selectivity=intervals.item_bootstrap((real - control)[..., covered], weights, level),
        control_p=(per_labeling >= per_labeling[..., :1]).mean(-1),
        alpha=np.asarray(alphas)[scores.chosen[..., 0]],
        correct=real,
    )


def gap(correct_a, correct_b, *, level=0.95, draws=intervals.DRAWS, seed=0) -> Interval:
    """The decodability gap G = acc(a) - acc(b) over the items that both probes held out (NaN elsewhere), paired."""
    difference = np.asarray(correct_a, float) - np.asarray(correct_b, float)
    both = np.isfinite(difference)
    if not both.any():
        raise ValueError("gap: the two probes share no item")
    return intervals.item_bootstrap(difference[both], intervals.item_weights(int(both.sum()), draws, seed), level)


def baselines(labels, folds: Folds, option_counts, question=None, *, n_classes, level=0.95, **probe) -> dict:
    """Wilson intervals of what needs no latent: majority letter, majority by option count, question features [I, D].

    Everything is learnt on the training fold and scored on the held-out items of the same folds as the probes.
    """
    labels, covered = np.asarray(labels), np.asarray(folds.covered)
    guesses = {"majority": majority_predictions(labels, folds),
               "option_count": majority_predictions(labels, folds, option_counts)}  # fmt: skip
    if question is not None:
        probe = {"alphas": ALPHAS, "standardize": True} | probe
        scores = ridge_scores(question, labels[None], folds, n_classes=n_classes, **probe)
        guesses["question_only"] = np.asarray(scores.predicted_chosen)[0]
    n = int(covered.sum())
    return {name: intervals.wilson((guess == labels)[covered].sum(), n, level) for name, guess in guesses.items()}
