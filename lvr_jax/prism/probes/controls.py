"""Control labels and trivial baselines: the accuracy of a probe that reads nothing."""

import numpy as np

from lvr_jax.prism.probes.folds import Folds

CONTROL_KINDS = ("uniform", "marginal", "per_category")


def control_labels(kind: str, labels, count: int, *, n_classes: int, categories=None, seed: int = 0) -> np.ndarray:
    """`count` random labelings [J, I] to probe beside the real labels [I] (Hewitt and Liang, 2019).

    uniform: each item a random class, the paper's control; marginal: the real labels shuffled, so that the skew of
    the letters stays; per_category: shuffled inside each category [I], so that what the category alone gives away
    (two-option questions never answer C) stays too. Raises ValueError on an unknown kind or missing categories.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(0, n_classes, (count, len(labels)))
    if kind == "marginal":
        groups = [np.arange(len(labels))]
    elif kind == "per_category":
        if categories is None:
            raise ValueError("control labels 'per_category' need the category of each item")
        groups = [np.flatnonzero(np.asarray(categories) == name) for name in np.unique(categories)]
    else:
        raise ValueError(f"control labels {kind!r}; expected one of {', '.join(CONTROL_KINDS)}")
    drawn = np.tile(labels, (count, 1))
    for group in groups:
        drawn[:, group] = rng.permuted(drawn[:, group], axis=1)
    return drawn


def majority_predictions(labels, folds: Folds, groups=None) -> np.ndarray:
    """Predicts for each held-out item the commonest training label [I], within its group where groups [I] are given.

    With the number of options as the group this is the option-count baseline: what the format alone gives away. A group
    that a fold never trains on gets the fold's overall commonest label; items in no fold get -1. Ties: lowest label.
    """
    labels = np.asarray(labels)
    groups = np.zeros(len(labels), int) if groups is None else np.asarray(groups)
    predicted = np.full(len(labels), -1)
    for train, train_valid, held, held_valid in zip(folds.train, folds.train_valid, folds.held, folds.held_valid):
        train, held = train[train_valid], held[held_valid]
        overall = np.bincount(labels[train]).argmax()
        for name in np.unique(groups[held]):
            inside = labels[train[groups[train] == name]]
            predicted[held[groups[held] == name]] = np.bincount(inside).argmax() if len(inside) else overall
    return predicted
