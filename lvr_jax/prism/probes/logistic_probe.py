"""The paper's own probe: logistic regression on z-scored states, with its mutual-information bound.

"Cosine Misleads" appendix A (arXiv 2606.05753): L2 with C = 1, L-BFGS with 1,000 iterations, stratified shuffled 5
folds, seed 42. scikit-learn, so that the solver is the paper's too: at D = 2048 it stops early, and where it stops is
part of the published number.
"""

from dataclasses import dataclass

import numpy as np

from lvr_jax.prism.probes.folds import stratified_folds
from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval


@dataclass(frozen=True)
class LogisticProbe:
    """Out-of-fold results on n items; entropies and cross-entropy in nats.

    classes [Y] are the labels present; probability [I, Y], predicted [I] and held_by [I] (the fold) are out of fold.
    accuracy: mean over folds; accuracy_std: population deviation over folds, the paper's "+-"; by_fold and by_item:
    the t interval over folds and the item bootstrap. mi_empirical = max(0, entropy - cross_entropy) with the label
    entropy of these items, mi_uniform with ln Y; mi_interval bootstraps entropy - cross_entropy over items, not
    clipped at 0.
    """

    classes: np.ndarray
    held_by: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    fold_accuracy: np.ndarray
    accuracy: float
    accuracy_std: float
    by_fold: Interval
    by_item: Interval
    cross_entropy: float
    entropy: float
    mi_empirical: float
    mi_uniform: float
    mi_interval: Interval


def logistic_probe(
    x, labels, *, k=5, c=1.0, max_iter=1000, seed=42, level=0.95, draws=intervals.DRAWS
) -> LogisticProbe:
    """x [I, D] finite, labels [I]; k falls to the count of the rarest label. Raises ValueError if that is below 2."""
    # Late: scikit-learn, with the pandas that it looks for, takes a quarter of the time that an audit takes to start.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # In fp32, scikit-learn 1.9 solves in fp32 where 1.8 did in fp64, and an item or two change sides.
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    folds = stratified_folds(labels, k, seed)
    classes, target = np.unique(labels, return_inverse=True)
    n, k = len(labels), len(folds.held)
    held_by, probability = np.zeros(n, int), np.zeros((n, len(classes)))
    for f in range(k):
        train, held = folds.train[f][folds.train_valid[f]], folds.held[f][folds.held_valid[f]]
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=c, max_iter=max_iter, solver="lbfgs")
        model.fit(scaler.transform(x[train]), target[train])
        probability[held], held_by[held] = model.predict_proba(scaler.transform(x[held])), f
    predicted = probability.argmax(1)
    correct = predicted == target
    fold_accuracy = np.array([correct[held_by == f].mean() for f in range(k)])
    loss = -np.log(np.clip(probability[np.arange(n), target], np.finfo(probability.dtype).eps, 1))
    entropy = label_entropy(np.bincount(target))
    weights = intervals.item_weights(n, draws, seed)
    return LogisticProbe(
        classes, held_by, probability, classes[predicted], fold_accuracy, float(fold_accuracy.mean()),
        float(fold_accuracy.std()), intervals.fold_interval(fold_accuracy, level),
        intervals.item_bootstrap(correct, weights, level), float(loss.mean()), float(entropy),
        float(max(0, entropy - loss.mean())), float(max(0, np.log(len(classes)) - loss.mean())),
        information_interval(target, loss, weights, level),
    )  # fmt: skip


def information_interval(target, loss, weights, level: float = 0.95) -> Interval:
    """Label entropy minus mean loss in nats, target [I] and loss [I], redrawing items by weights [draws, I] together.

    The point is the published estimate; the limits are moved up by twice the bias of an observed entropy,
    (Y - 1) / 2I (Miller and Madow), for it lies below the truth by that much, and redrawing lowers it by as much again.
    Regime: 100 or more items, losses without a few giants (a probe that is confidently wrong on a handful of items).
    """
    counts = np.bincount(target)
    point = label_entropy(counts) - np.mean(loss)
    redrawn = label_entropy(weights @ np.eye(len(counts))[target]) - weights @ loss / len(loss)
    return intervals.percentile(redrawn + ((counts > 0).sum() - 1) / len(loss), float(point), level)


def label_entropy(counts) -> np.ndarray:
    """Entropy in nats of label counts [..., Y]: of the observed frequencies, without bias correction, as published."""
    share = np.asarray(counts, float)
    share = share / share.sum(-1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
